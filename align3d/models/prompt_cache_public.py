"""The prompt caches of Nabla-R2D3's public code, as a text source: T5 states of PixArt-Sigma, in torch's files.

prompts.txt, of any name                        a prompt a line
00001-01000prompt_embeds.pt, ...                states of the tokens of prompts 1 to 1000, end to end (n, 4096)
00001-01000prompt_attention_masks.pt, ...       which of the 300 places of each are tokens (1000 * 300)
negative_prompt_embeds.pt, ..._mask.pt          the empty prompt (1, 300, 4096), (1, 300)

Source: cache_embedding.ipynb and src/nablagflow/alignment/prompt_embedding_dataset.py (commit 77483e6). They call the
last chunk N+1 to N where N is a multiple of 1000, and it is taken for what it is.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from align3d.models.prompt_cache import check_identity
from align3d.models.text import T5_TOKENS, Text, check_lengths, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

NAME = re.compile(r"(\d{5,})-(\d{5,})prompt_embeds\.pt")
EMPTY = "negative_prompt_embeds.pt", "negative_prompt_attention_mask.pt"
OPEN = 16  # chunks that are mapped at a time
MAX_BYTES = 1 << 28  # of the text file


class Chunk(NamedTuple):
    """A file of states, and where the tokens of each of its prompts end."""

    states: Float[Tensor, "n D"]
    ends: Int[Tensor, "m"]


def is_public(folder: Path) -> bool:
    """Whether a folder looks like such a cache."""
    return folder.is_dir() and any(NAME.fullmatch(path.name) for path in folder.iterdir())


@dataclass(eq=False)
class PublicCache:
    """Such a cache. The prompts are in memory; their states stay on disk until they are asked for."""

    folder: Path
    rows: dict[str, int]  # prompt -> its line, from 0; of equal ones the first
    chunks: list[tuple[int, int, str]]  # the lines first to last of each chunk, and how its names begin
    width: int  # D
    device: str = "cpu"
    latest: OrderedDict[int, Chunk] = field(default_factory=OrderedDict)

    @classmethod
    def open(cls, folder: Path, expect: Mapping[str, Any] | None = None, device: str = "cpu") -> PublicCache:
        """Open a cache; arguments and errors as of `prompt_cache.open_cache`."""
        texts = sorted(folder.glob("*.txt"))
        if len(texts) != 1:
            raise ValueError(f"{folder} must have one .txt file, with a prompt per line, got {len(texts)}")
        lines, chunks = read_lines(texts[0]), find_chunks(folder)
        if chunks[-1][1] >= len(lines):
            raise ValueError(f"{texts[0]} has {len(lines)} prompts, but chunks go up to {chunks[-1][1] + 1}")
        rows: dict[str, int] = {}
        for i, line in enumerate(lines[: chunks[-1][1] + 1]):
            rows.setdefault(line, i)
        negative = tensor(folder / EMPTY[0])
        if negative.ndim != 3 or tuple(negative.shape[:2]) != (1, T5_TOKENS):
            raise ValueError(f"{folder / EMPTY[0]} must be (1, {T5_TOKENS}, D), got {tuple(negative.shape)}")
        cache = cls(folder, rows, chunks, negative.shape[2], device)
        check_identity(cache.identity, expect, folder)
        return cache

    def __len__(self) -> int:
        return len(self.rows.keys() | {""})

    def __contains__(self, prompt: str) -> bool:
        return not prompt or prompt in self.rows

    @property
    def identity(self) -> dict[str, Any]:
        """As much as is known of the text encoder: there is no hash of its files."""
        return {"encoder": "t5", "tokens": T5_TOKENS, "width": self.width, "pooled": 0}

    @plain
    def __call__(self, prompts: Sequence[str]) -> Text:
        """The encoded prompts, float32; no gradient.

        Raises:
            ValueError: If one is not there, or a file is damaged.
        """
        import torch

        check_lengths(prompts)
        states = torch.zeros(len(prompts), T5_TOKENS, self.width)
        keep = torch.zeros(len(prompts), T5_TOKENS)
        for i, prompt in enumerate(prompts):
            found = self._row(prompt) if prompt else self._empty()
            if not found.isfinite().all():
                raise ValueError(f"{self.folder} is damaged: the states of prompt {prompt!r} are not finite")
            states[i, : len(found)] = found
            keep[i, : len(found)] = 1
        return Text(states, keep).to(self.device)

    def _empty(self) -> Float[Tensor, "n D"]:
        states, mask = (tensor(self.folder / name) for name in EMPTY)
        sizes = lengths(self.folder / EMPTY[1], mask.reshape(-1), 1)
        return states[0, : int(sizes[0])]

    def _row(self, prompt: str) -> Float[Tensor, "n D"]:
        if prompt not in self.rows:
            raise ValueError(f"prompt {prompt!r} is not in the cache {self.folder}; make one with align3d embed")
        row = self.rows[prompt]
        number = next(k for k, (_, last, _) in enumerate(self.chunks) if row <= last)
        if number not in self.latest:
            self.latest[number] = self._chunk(number)
        self.latest.move_to_end(number)
        while len(self.latest) > OPEN:
            self.latest.popitem(last=False)
        states, ends = self.latest[number]
        at = row - self.chunks[number][0]
        return states[int(ends[at - 1]) if at else 0 : int(ends[at])]

    def _chunk(self, number: int) -> Chunk:
        first, last, name = self.chunks[number]
        paths = [self.folder / f"{name}prompt_{what}.pt" for what in ("embeds", "attention_masks")]
        states, mask = (tensor(path) for path in paths)
        ends = lengths(paths[1], mask, last - first + 1).cumsum(0)
        if tuple(states.shape) != (int(ends[-1]), self.width):
            wanted = (int(ends[-1]), self.width)
            raise ValueError(f"{paths[0]} must be {wanted} by its mask and the empty prompt, got {tuple(states.shape)}")
        return Chunk(states, ends)


def find_chunks(folder: Path) -> list[tuple[int, int, str]]:
    """The lines (from 0) that each chunk covers, in order, without a gap; and how its names begin.

    Raises:
        ValueError: If one is missing.
    """
    found = sorted((int(m[2]), int(m[1]), m[0]) for p in folder.iterdir() if (m := NAME.fullmatch(p.name)))
    chunks, at = [], 0
    for last, first, name in found:
        if first not in (at + 1, last + 1) or last <= at:
            raise ValueError(f"{folder} has no chunk that begins with prompt {at + 1}; {name} comes next")
        chunks.append((at, last - 1, name.removesuffix("prompt_embeds.pt")))
        at = last
    return chunks


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped; empty ones count, as in the public code.

    Raises:
        ValueError: If it is too large or no UTF-8.
    """
    from align3d import files

    return [line.strip() for line in files.read_lines(path, MAX_BYTES)]


def lengths(path: Path, mask: Tensor, count: int) -> Int[Tensor, "count"]:
    """Tokens of each prompt, from a flat mask.

    Raises:
        ValueError: If it is no mask of so many prompts, or tokens do not come first.
    """
    if tuple(mask.shape) != (count * T5_TOKENS,):
        raise ValueError(f"{path} must have {count} x {T5_TOKENS} numbers, got the shape {tuple(mask.shape)}")
    rows = mask.view(count, T5_TOKENS) == 1
    if not bool((rows[:, :-1] >= rows[:, 1:]).all()):
        raise ValueError(f"{path} is damaged: tokens must come before padding")
    return rows.sum(1)


def tensor(path: Path) -> Tensor:
    """The tensor in a file of torch.save, mapped into memory where its format allows it; no pickled code runs.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or holds anything else.
    """
    import torch

    from align3d.pretrained.legacy import is_whole, load_legacy

    found = load_legacy(path)
    if type(found) is not torch.Tensor or found.dtype not in kinds():
        raise ValueError(f"{path} must hold one plain tensor, got {type(found).__name__}")
    if not is_whole(found, path):
        raise ValueError(f"{path} is damaged: it must hold one plain tensor, and all of its numbers")
    return found


def kinds() -> set[Any]:
    """Types of numbers that such a file may have."""
    import torch

    return {torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool}
