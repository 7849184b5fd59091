"""The prompts of an update: drawn from a pool, and told in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.rng import Streams


def draw(prompts: Sequence[str], rng: Streams) -> list[str]:
    """A prompt for each row, drawn from the pool with replacement, the same for all rows of a group."""
    import torch

    heads = [prompts[int(torch.randint(len(prompts), (), generator=g))] for g in rng.each("prompt")[:: rng.group]]
    return [heads[i // rng.group] for i in range(len(rng))]


def quoted(prompts: Sequence[str]) -> str:
    """Prompts for an error message: each once, in order, eight at most."""
    each = list(dict.fromkeys(prompts))
    more = f" and {len(each) - 8} more" if len(each) > 8 else ""
    return f"prompt{'s' if len(each) > 1 else ''} {', '.join(map(repr, each[:8]))}{more}"
