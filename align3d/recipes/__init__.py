"""Published runs by name, and this project's own: a recipe is the whole configuration of a run.

    align3d train nabla-r2d3-aesthetic-diffsplat-pas --variant released --model.weights ... --prompts ... --out ...
    align3d optimize rewardsds-2d-sds --prior.weights ... --reward.weights ... --prompt ... --out ...

A recipe only sets defaults: every option can still be given, and `--help` behind its name shows what it sets.
"""

from __future__ import annotations

from difflib import get_close_matches

from align3d.recipes import nabla, rewardsds
from align3d.recipes.recipe import PARTS, Recipe, Settings

__all__ = ["PARTS", "RECIPES", "Recipe", "Settings", "get", "variants"]
FAMILIES = (nabla, rewardsds)
RECIPES = {name: family for family in FAMILIES for name in family.RECIPES}  # name -> module


def variants(name: str) -> tuple[str, ...]:
    """Those of a recipe, the default first; none where there is one configuration."""
    return RECIPES[name].VARIANTS[name]


def get(name: str, variant: str | None = None) -> Recipe:
    """A recipe by name.

    Args:
        name: Of RECIPES.
        variant: One of its variants; None: the first, if it has any.

    Raises:
        ValueError: If there is none of that name, or no such variant.
    """
    if name not in RECIPES:
        close = get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        named = " or ".join(family.NAMED for family in FAMILIES)
        hint = f"did you mean {close[0]}?" if close else f"they are called {named}"
        raise ValueError(f"unknown recipe {name!r}; {hint} (`align3d list recipes` shows all)")
    known = variants(name)
    if variant is None:
        return RECIPES[name].recipe(name, known[0] if known else None)
    if variant not in known:
        has = "no variants" if not known else f"the variant{'s' * (len(known) > 1)} {' and '.join(known)}"
        raise ValueError(f"recipe {name} has {has}, got {variant!r}")
    return RECIPES[name].recipe(name, variant)
