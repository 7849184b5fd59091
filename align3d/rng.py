"""Randomness as an argument: every draw is a function of seed, step, purpose and sample, and of nothing else.

Sample i of a step gets the same noise, prompt and camera whatever the batch split, the number of processes or the
device: draws are made on the CPU, one generator per sample and purpose, and moved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def stream(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone.

    Args:
        *key: Seed, step, purpose, sample, in any agreed order; integers and strings.

    Returns:
        A new generator, the same for the same key on every machine and in every process.
    """
    import torch

    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


OUTSIDE = -2  # the step of what is no part of a training run


@dataclass(frozen=True)
class Streams:
    """The randomness of one batch: a key for each of its samples, and one that they share."""

    shared: tuple[int | str, ...]  # (seed, step): the same on every process
    keys: tuple[tuple[int | str, ...], ...]  # one per row of the batch
    group: int = 1  # so many rows in a row share a prompt; rows are a multiple of it, but for parts of a batch
    counted: tuple[bool, ...] | None = None  # rows that are finished samples; None = all

    @classmethod
    def batch(cls, seed: int, step: int, first: int, size: int, group: int = 1) -> Streams:
        """The streams of samples first .. first + size - 1 of a step; `first` is rank * batch size."""
        return cls((seed, step), tuple((seed, step, first + i) for i in range(size)), group)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def step(self) -> int:
        """The step that the batch is of: an update, counted from 0; below 0 what precedes the first, or is in none."""
        return int(self.shared[1]) if len(self.shared) > 1 else OUTSIDE

    def common(self, purpose: str) -> torch.Generator:
        """A generator for a choice that all samples and processes share."""
        return stream(*self.shared, purpose)

    def each(self, purpose: str) -> list[torch.Generator]:
        """One generator per row."""
        return [stream(*key, purpose) for key in self.keys]

    def normal(self, purpose: str, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
        """Standard normal noise (B, *shape), on the device and in the type of `like` (CPU float32 without)."""
        import torch

        noise = torch.stack([torch.randn(shape, generator=g) for g in self.each(purpose)])
        return noise if like is None else noise.to(like)

    def uniform(self, purpose: str, shape: tuple[int, ...] = (), like: Tensor | None = None) -> Tensor:
        """Uniform draws in [0, 1), (B, *shape), on the device and in the type of `like` (CPU float32 without)."""
        import torch

        draw = torch.stack([torch.rand(shape, generator=g) for g in self.each(purpose)])
        return draw if like is None else draw.to(like)

    def rows(self, part: slice) -> Streams:
        """The streams of some rows."""
        counted = None if self.counted is None else self.counted[part]
        return replace(self, keys=self.keys[part], counted=counted)

    def counted_rows(self, device: torch.device | str = "cpu") -> Tensor:
        """Which rows are finished samples, for statistics that leave estimates out: (B,), bool."""
        import torch

        every = (True,) * len(self)
        return torch.tensor(every if self.counted is None else self.counted, dtype=torch.bool, device=device)

    def repeat(self, times: int, first: int = 0) -> Streams:
        """Streams for copies `first`, `first` + 1, ... (`times` of them) of the batch, copy-major, all different."""
        copies = range(first, first + times)
        keys = tuple((*key, "copy", j) for j in copies for key in self.keys)
        return replace(self, keys=keys, counted=None if self.counted is None else self.counted * times)

    def of_groups(self) -> Streams:
        """Streams that are the same for all rows of a group: those of its first row."""
        return replace(self, keys=tuple(self.keys[i - i % self.group] for i in range(len(self.keys))))
