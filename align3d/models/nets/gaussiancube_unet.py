"""The network of GaussianCube: a UNet of 32 x 32 x 32 voxels that predicts the clean cube (Zhang et al. 2024).

Names of the parameters are those of the published files, which are plain state dicts without a configuration: what a
file holds says which network it is for (`Architecture.of`). It is the UNet of guided diffusion (Dhariwal and Nichol
2021, arXiv 2105.05233) with a third axis; texts enter as keys and values beside the voxels', as in Imagen, and by a
pooled vector that is added to that of the time; classes by theirs. Source: arXiv 2403.19655, appendix, and the released
code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

HEAD = 64  # channels of an attention head
POOLING_HEADS = 64  # heads of the attention that pools a text
GROUPS = 32  # of the norms
MOST = 1 << 16  # of channels, classes or anything else that is counted; more is another network, or damage


@dataclass(frozen=True)
class Architecture:
    """What one network differs in from another."""

    widths: tuple[int, ...]  # channels of each level; from one to the next, voxels are joined 2 x 2 x 2
    blocks: int  # residual blocks of a level, on the way down; one more on the way up
    attention: tuple[bool, ...]  # whether the voxels of a level look at each other
    time: int  # channels of the first time embedding
    channels: int  # numbers of a voxel
    text: int = 0  # numbers of a token; 0: not conditioned on texts
    text_width: int = 0  # numbers that attention reads of a token
    classes: int = 0  # 0: not conditioned on classes; the one after the last is no class
    head: int = HEAD
    pooling_heads: int = POOLING_HEADS
    embed: int = 0  # channels of the time embedding; 0: `time` times what the widest level has of the first

    def __post_init__(self) -> None:
        if not self.embed:
            object.__setattr__(self, "embed", self.time * (max(self.widths) // self.widths[0]))

    @property
    def kind(self) -> str:
        """What the network is conditioned on: texts, classes or nothing."""
        return "texts" if self.text else "classes" if self.classes else "nothing"

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Architecture:
        """The architecture that a state dict is for.

        Args:
            shapes: Of its tensors, by name.

        Raises:
            ValueError: If it is none of this network.
        """
        try:
            return cls._read(shapes)
        except ValueError as error:
            raise ValueError(f"no GaussianCube network: {error}") from None

    @classmethod
    def _read(cls, shapes: Mapping[str, Sequence[int]]) -> Architecture:
        up = [int(found[1]) for name in shapes if (found := re.match(r"output_blocks\.(\d{1,9})\.", name))]
        total = max(up, default=-1) + 1
        if not 0 < total <= len(shapes):
            raise ValueError(f"{total} blocks on the way up, in {len(shapes)} tensors")
        if hollow := [name for name, shape in shapes.items() if not all(shape)]:
            raise ValueError(f"{hollow[0]} has no numbers")
        ends = [i for i in range(total) if f"output_blocks.{i}.1.in_layers.0.weight" in shapes]
        ends += [i for i in range(total) if f"output_blocks.{i}.2.in_layers.0.weight" in shapes]
        per_level = total // (len(ends) + 1)  # a level ends with a block that doubles the voxels, but for the finest
        if per_level < 2:
            raise ValueError(f"{total} blocks on the way up, in {len(ends) + 1} levels")
        first = range(0, total, per_level)  # coarsest level first
        text, label = "encoder_proj.weight", "label_emb.weight"
        return cls(
            widths=tuple(_size(shapes, f"output_blocks.{i}.0.in_layers.2.weight", 0) for i in first)[::-1],
            blocks=per_level - 1,
            attention=tuple(f"output_blocks.{i}.1.qkv.weight" in shapes for i in first)[::-1],
            time=_size(shapes, "time_embed.0.weight", 1),
            channels=_size(shapes, "input_blocks.0.0.weight", 1),
            text=_size(shapes, text, 1) if text in shapes else 0,
            text_width=_size(shapes, text, 0) if text in shapes else 0,
            classes=_size(shapes, label, 0) - 1 if label in shapes else 0,
            embed=_size(shapes, "time_embed.0.weight", 0),
        )


def _size(shapes: Mapping[str, Sequence[int]], name: str, axis: int) -> int:
    """One of the sizes of a tensor.

    Raises:
        ValueError: If the tensor is missing, has fewer axes, or is larger than any of this network.
    """
    if name not in shapes:
        raise ValueError(f"{name} is missing")
    shape = list(shapes[name])
    if len(shape) <= axis or max(shape) > MOST:
        raise ValueError(f"{name} is {shape}")
    return shape[axis]


def sinusoids(labels: Float[Tensor, "B"], width: int) -> Float[Tensor, "B width"]:
    """Cosines, then sines, of time labels at width / 2 frequencies from 1 down to 1e-4."""
    half = width // 2
    frequency = torch.exp(-math.log(1e4) * torch.arange(half, device=labels.device, dtype=torch.float32) / half)
    angle = labels.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)


class ResBlock(nn.Module):
    """Two convolutions, scaled and shifted as the embedding asks for; may halve or double the voxels of each axis."""

    def __init__(self, source: int, width: int, embed: int, resize: float = 1.0):
        super().__init__()
        self.resize = resize
        self.in_layers = nn.Sequential(norm(source), nn.SiLU(), nn.Conv3d(source, width, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, 2 * width))
        self.out_layers = nn.Sequential(norm(width), nn.SiLU(), nn.Identity(), nn.Conv3d(width, width, 3, padding=1))
        self.skip_connection = nn.Identity() if source == width else nn.Conv3d(source, width, 1)

    def forward(self, x: Float[Tensor, "B C X Y Z"], embed: Float[Tensor, "B E"]) -> Float[Tensor, "B D X2 Y2 Z2"]:
        """The cube."""
        first, second = self.in_layers[:2], self.in_layers[2]
        h, x = second(resized(first(x), self.resize)), resized(x, self.resize)
        scale, shift = self.emb_layers(embed)[..., None, None, None].to(h.dtype).chunk(2, 1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


class Attention(nn.Module):
    """Voxels look at each other and at the words."""

    def __init__(self, width: int, text: int, head: int):
        super().__init__()
        if width % head:
            raise ValueError(f"{width} channels are no multiple of {head}, those of a head")
        self.heads = width // head
        self.norm, self.qkv = norm(width), nn.Conv1d(width, 3 * width, 1)
        if text:
            self.encoder_kv, self.norm_encoder = nn.Conv1d(text, 2 * width, 1), norm(text)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(
        self, x: Float[Tensor, "B C X Y Z"], words: Float[Tensor, "B W T"] | None
    ) -> Float[Tensor, "B C X Y Z"]:
        """The cube.

        Args:
            x: The cube before.
            words: Tokens, channels first; None = there are none.
        """
        q, k, v = self.split(self.qkv(self.norm(x).flatten(2)), 3)
        if words is not None:
            more = self.split(self.encoder_kv(self.norm_encoder(words)), 2)
            k, v = (torch.cat([a, b], 2) for a, b in zip(more, (k, v), strict=True))
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(seen.mT.flatten(1, 2)).view_as(x)

    def split(self, x: Float[Tensor, "B C T"], parts: int) -> tuple[Float[Tensor, "B H T D"], ...]:
        """Queries, keys, values of each head; a head's are side by side."""
        return tuple(x.unflatten(1, (self.heads, parts, -1)).mT.unbind(2))


class Pooling(nn.Module):
    """One vector of all tokens: attention of their mean to all of them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} numbers of a token are no multiple of {heads}, the heads that pool a text")
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """The vector."""
        mean = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)
        x = torch.cat([mean, x], 1)
        q, k, v = (
            project(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, y in ((self.q_proj, mean), (self.k_proj, x), (self.v_proj, x))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)


class Steps(nn.ModuleList):
    """Layers one after the other, each with what it asks for."""

    def forward(self, x: Tensor, embed: Tensor, words: Tensor | None) -> Tensor:
        """The cube."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embed)
            else:
                x = layer(x, words) if isinstance(layer, Attention) else layer(x)
        return x


class CubeUNet(nn.Module):
    """The network; with `recompute`, none of a block's activations are kept for its gradient, but computed again."""

    def __init__(self, architecture: Architecture, recompute: bool = False):
        super().__init__()
        own = architecture
        self.architecture, self.recompute = own, recompute
        embed, channels = own.embed, own.widths[0]
        self.time_embed = nn.Sequential(nn.Linear(own.time, embed), nn.SiLU(), nn.Linear(embed, embed))
        if own.classes:
            self.label_emb = nn.Embedding(own.classes + 1, embed)
        self.input_blocks = nn.ModuleList([Steps([nn.Conv3d(own.channels, channels, 3, padding=1)])])
        kept = [channels]
        for level, width in enumerate(own.widths):
            for _ in range(own.blocks):
                self.input_blocks.append(Steps([ResBlock(channels, width, embed), *self._attention(level)]))
                channels = width
                kept.append(channels)
            if level < len(own.widths) - 1:
                self.input_blocks.append(Steps([ResBlock(channels, channels, embed, 0.5)]))
                kept.append(channels)
        middle = Attention(channels, own.text_width, own.head)
        self.middle_block = Steps([ResBlock(channels, channels, embed), middle, ResBlock(channels, channels, embed)])
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(own.widths))):
            for i in range(own.blocks + 1):
                layers = [ResBlock(channels + kept.pop(), width, embed), *self._attention(level)]
                channels = width
                if level and i == own.blocks:
                    layers.append(ResBlock(channels, channels, embed, 2.0))
                self.output_blocks.append(Steps(layers))
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv3d(channels, 2 * own.channels, 3, padding=1))
        if own.text:
            layers = nn.LayerNorm(own.text), Pooling(own.text, own.pooling_heads), nn.Linear(own.text, embed)
            self.encoder_pooling = nn.Sequential(*layers, nn.LayerNorm(embed))
            self.encoder_proj = nn.Linear(own.text, own.text_width)

    def _attention(self, level: int) -> list[Attention]:
        own = self.architecture
        return [Attention(own.widths[level], own.text_width, own.head)] if own.attention[level] else []

    def forward(
        self,
        x: Float[Tensor, "B C X Y Z"],
        labels: Float[Tensor, "B"],
        text: Float[Tensor, "B T D"] | None = None,
        classes: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B C X Y Z"]:
        """The clean cube. The second half of the last layer, a variance that no sampler reads, is not computed.

        Args:
            x: Noisy cubes.
            labels: Of the noise levels, 0 to 999, whole or not.
            text: States of the tokens, all 77 of them; of a network that is conditioned on texts, and no other.
            classes: Of a network that is conditioned on classes, and no other.

        Gradient: to x, and to the parameters.
        """
        asked = (bool(self.architecture.text), bool(self.architecture.classes))
        assert (text is not None, classes is not None) == asked, "it is given what it is conditioned on, nothing else"
        embed = self.time_embed(sinusoids(labels, self.architecture.time).to(x.dtype))
        words = None
        if text is not None:
            words = self.encoder_proj(text).mT
            embed = embed + self.encoder_pooling(text)
        if classes is not None:
            embed = embed + self.label_emb(classes)
        h, kept = x, []
        for block in self.input_blocks:
            h = self._run(block, h, embed, words)
            kept.append(h)
        h = self._run(self.middle_block, h, embed, words)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, kept.pop()], 1), embed, words)
        h, last, channels = self.out[:2](h), self.out[2], self.architecture.channels
        return F.conv3d(h, last.weight[:channels], last.bias[:channels], padding=1)

    def _run(self, block: Steps, h: Tensor, embed: Tensor, words: Tensor | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, h, embed, words, use_reentrant=False, preserve_rng_state=False)
        return block(h, embed, words)


def norm(width: int) -> nn.GroupNorm:
    """The norm of all layers."""
    return nn.GroupNorm(GROUPS, width)


def resized(x: Float[Tensor, "B C X Y Z"], factor: float) -> Float[Tensor, "B C X2 Y2 Z2"]:
    """Voxels joined 2 x 2 x 2 by their mean, or each repeated so often."""
    if factor < 1:
        return x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5, 7))
    return x if factor == 1 else F.interpolate(x, scale_factor=2.0, mode="nearest")
