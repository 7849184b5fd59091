"""All categories by name, and the rule that keeps some of their colours for tests."""

from __future__ import annotations

import functools
import zlib

from .category import Category
from .home import HOME
from .kitchen import KITCHEN
from .outdoors import OUTDOORS
from .palette import COLORS
from .things import THINGS

CATEGORIES: dict[str, Category] = {**HOME, **KITCHEN, **OUTDOORS, **THINGS}


@functools.cache
def _held(category: str) -> frozenset[str]:
    """One or two colours, seven in four categories, drawn by a hash among those not natural to it."""
    free = [color for color in COLORS if color not in CATEGORIES[category].natural]
    drawn = sorted(free, key=lambda color: zlib.crc32(f"{category}|{color}".encode()))
    return frozenset(drawn[: 2 if zlib.crc32(category.encode()) % 4 else 1])


def held_out(category: str, color: str) -> bool:
    """Whether no training object of this category has this main colour; true for about one pair in eight.

    Args:
        category: A key of CATEGORIES.
        color: A key of COLORS.
    """
    return color in _held(category)


def category_of(noun: str) -> str | None:
    """The category that goes by this noun, or None; for other data sets that must keep to `held_out`."""
    return next((name for name, kind in CATEGORIES.items() if noun in (name, *kind.nouns)), None)


def colors_of(category: str, held: bool) -> list[str]:
    """The colours that training objects of a category may have, or (`held`) those that they never have."""
    return [color for color in COLORS if held_out(category, color) == held]
