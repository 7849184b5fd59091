"""What a category of objects is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .build import Builder


@dataclass(frozen=True)
class Category:
    """A recipe for objects of one kind, and the words for them."""

    build: Callable[[Builder], None]  # adds primitives to an empty builder; proportions and options are its own draws
    nouns: tuple[str, ...]  # the first is the plainest
    part: str  # what the second colour belongs to; a plural has no article
    part_color: str | None  # where the caption does not name one; None: the object's own
    yaw: float = 0.0  # degrees; every object of the category stands within 10 of it
    natural: tuple[str, ...] = ()  # colours that go without saying; never held out
    patterns: tuple[str, ...] = ()  # "striped", "dotted": what looks right on the main colour
    small: bool = False  # may be counted ("three red apples") and may stand on or beside something
    wooden: bool = False  # a brown one may be called wooden
    stretch: bool = True  # may be tall, short, wide or thin
