"""All categories by name, and the rule that keeps some of their colours for tests."""

from __future__ import annotations

from .category import Category
from .home import HOME
from .kitchen import KITCHEN
from .outdoors import OUTDOORS
from .palette import COLORS, in_held_part
from .things import THINGS

CATEGORIES: dict[str, Category] = {**HOME, **KITCHEN, **OUTDOORS, **THINGS}


def held_out(category: str, color: str) -> bool:
    """Whether no training object of this category has this main colour; about one pair in eight, natural colours never."""
    return color not in CATEGORIES[category].natural and in_held_part(category, color)


def colors_of(category: str, held: bool) -> list[str]:
    """The colours that training objects of a category may have, or (`held`) those that they never have."""
    return [color for color in COLORS if held_out(category, color) == held]
