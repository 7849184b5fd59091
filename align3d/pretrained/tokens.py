"""Tokens of a text that is longer than a network reads."""

from __future__ import annotations


def cut(ids: list[int], most: int) -> list[int]:
    """Tokens, so many at most, the last of them kept: it is the end."""
    return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]
