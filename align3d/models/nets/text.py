"""A small text encoder that takes any string: words by name where they are known, by their letters always."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

PAD, START = 0, 1


class WordPieces:
    """Text to ids: one token a word, each the set of its name (if known) and its hashed letter groups.

    A misspelt, inflected or unknown word shares most of its letter groups with its neighbours, so it lands near them
    (fastText, Bojanowski et al. 2017). The empty string is the start token alone.
    """

    def __init__(self, words: Sequence[str], buckets: int, max_words: int, max_pieces: int):
        self.ids = {word: 2 + buckets + i for i, word in enumerate(words)}
        self.buckets, self.max_words, self.max_pieces = buckets, max_words, max_pieces

    def pieces(self, word: str) -> list[int]:
        """The ids of one word: its name first (if known), then its groups of 3 and 4 letters."""
        marked = f"<{word}>"
        groups = [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)]
        hashed = [2 + zlib.crc32(group.encode()) % self.buckets for group in groups]
        return ([self.ids[word]] if word in self.ids else []) + hashed[: self.max_pieces - 1]

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "B T G"]:
        """Ids, zero where there is nothing; words beyond the last are dropped."""
        ids = torch.zeros(len(texts), self.max_words, self.max_pieces, dtype=torch.long)
        ids[:, 0, 0] = START
        for row, text in enumerate(texts):
            for column, word in enumerate(re.findall(r"[^\W_]+", text.lower())[: self.max_words - 1], start=1):
                pieces = self.pieces(word)
                ids[row, column, : len(pieces)] = torch.tensor(pieces)
        return ids


class TextEncoder(ModelMixin, ConfigMixin):
    """Strings to token states: summed piece embeddings and a few transformer blocks."""

    @register_to_config
    def __init__(
        self,
        words: Sequence[str] = (),
        buckets: int = 2048,
        max_words: int = 20,
        max_pieces: int = 16,
        dim: int = 128,
        layers: int = 2,
        heads: int = 4,
    ):
        super().__init__()
        self.tokenize = WordPieces(words, buckets, max_words, max_pieces)
        self.embedding = nn.Embedding(2 + buckets + len(words), dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.positions = nn.Parameter(torch.randn(max_words, dim) * 0.02)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(dim, heads, dim // heads, activation_fn="gelu-approximate", attention_bias=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Int[Tensor, "B T G"]) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """Token states and which of them are words (not padding)."""
        present = ids != PAD
        keep = present.any(-1)
        # the mask and not the zero row makes padding count as nothing: training may touch the row
        x = (self.embedding(ids) * present[..., None]).sum(2) + self.positions
        bias = (~keep).to(x.dtype)[:, None] * -10000.0
        for block in self.blocks:
            x = block(x, attention_mask=bias)
        return self.norm(x), keep
