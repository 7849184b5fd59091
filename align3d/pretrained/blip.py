"""BLIP's image encoder and the text encoder that looks at the image, under the names of the original code.

Source: Li et al. 2022 (arXiv 2201.12086), github.com/salesforce/BLIP: a ViT with its norms first, and a BERT with its
norms last, whose every layer has cross-attention to the image's tokens between self-attention and feed-forward. What
is left out: dropout, the decoder's causal mask, the caches of generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Of both encoders; by default a ViT-L/16 at 224 pixels, and BERT-base with two more words."""

    side: int = 224  # pixels
    patch: int = 16  # pixels
    width: int = 1024  # numbers of an image token
    blocks: int = 24
    heads: int = 16
    words: int = 30524
    places: int = 512  # the most tokens of a text
    text_width: int = 768  # numbers of a text token
    text_layers: int = 12
    text_heads: int = 12


def parts(**modules: nn.Module) -> nn.ModuleDict:
    """Modules under their names."""
    return nn.ModuleDict(modules)


def attend(
    q: Float[Tensor, "n q d"],
    k: Float[Tensor, "n k d"],
    v: Float[Tensor, "n k d"],
    heads: int,
    keep: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, "n q d"]:
    """Attention of several heads, to the keys that `keep` names."""
    split = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if keep is None else keep[:, None, None]
    return F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """A layer of the image encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = parts(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        self.mlp = parts(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """The next state of the tokens."""
        x = x + self.attn.proj(attend(*self.attn.qkv(self.norm1(x)).chunk(3, dim=-1), self.heads))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ImageEncoder(nn.Module):
    """Tokens of an image: one for the whole, then one for each patch, row by row."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        count = (sizes.side // sizes.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, sizes.width))
        self.patch_embed = parts(proj=nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch))
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n t d"]:
        """Tokens of prepared pixels; gradient to them."""
        x = self.patch_embed.proj(pixels).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    """Attention with what follows it in BERT: a linear layer, the way around both, and a norm."""

    def __init__(self, width: int, heads: int, seen: int) -> None:
        super().__init__()
        self.heads = heads
        inside = {"query": nn.Linear(width, width), "key": nn.Linear(seen, width), "value": nn.Linear(seen, width)}
        self.add_module("self", parts(**inside))
        self.output = parts(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(
        self, x: Float[Tensor, "n t d"], seen: Float[Tensor, "n k e"], keep: Bool[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n t d"]:
        """The next state of `x`, which looks at `seen`."""
        inside = self.get_submodule("self")
        y = attend(inside.query(x), inside.key(seen), inside.value(seen), self.heads, keep)
        return self.output.LayerNorm(x + self.output.dense(y))


class Layer(nn.Module):
    """A layer of the text encoder."""

    def __init__(self, width: int, heads: int, seen: int) -> None:
        super().__init__()
        self.attention, self.crossattention = Attention(width, heads, width), Attention(width, heads, seen)
        self.intermediate = parts(dense=nn.Linear(width, 4 * width))
        self.output = parts(dense=nn.Linear(4 * width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(
        self, x: Float[Tensor, "n t d"], image: Float[Tensor, "n k e"], keep: Bool[Tensor, "n t"]
    ) -> Float[Tensor, "n t d"]:
        """The next state of the text's tokens."""
        x = self.crossattention(self.attention(x, x, keep), image)
        return self.output.LayerNorm(x + self.output.dense(F.gelu(self.intermediate.dense(x))))


class TextEncoder(nn.Module):
    """Tokens of a text that has seen an image."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.text_width
        self.embeddings = parts(
            word_embeddings=nn.Embedding(sizes.words, width),
            position_embeddings=nn.Embedding(sizes.places, width),
            LayerNorm=nn.LayerNorm(width, eps=1e-12),
        )
        layers = (Layer(width, sizes.text_heads, sizes.width) for _ in range(sizes.text_layers))
        self.encoder = parts(layer=nn.ModuleList(layers))

    def forward(
        self, ids: Int[Tensor, "n t"], keep: Bool[Tensor, "n t"], image: Float[Tensor, "n k e"]
    ) -> Float[Tensor, "n t d"]:
        """Tokens of texts; `keep` says which are the texts' own. Gradient: to the image's tokens."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings.word_embeddings(ids) + self.embeddings.position_embeddings(places)
        x = self.embeddings.LayerNorm(x)
        for layer in self.encoder.layer:
            x = layer(x, image, keep)
        return x
