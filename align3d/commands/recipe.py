"""What a recipe that the arguments name says, for the commands that take one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from align3d import recipes
from align3d.commands.flags import value_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def of_recipe(args: Sequence[str], command: str) -> dict[str, dict[str, Any]]:
    """The settings of the recipe that the arguments name, as defaults; nothing if they name none.

    Args:
        args: Of the command line.
        command: train or optimize.

    Raises:
        ValueError: If there is no such recipe, it is another command's, or there is a variant of none.
    """
    name, variant = value_of("--recipe", args), value_of("--variant", args)
    if name is None:
        loose = [arg for before, arg in itertools.pairwise(args) if arg in recipes.RECIPES and before[:2] != "--"]
        if loose:
            raise ValueError(f"a recipe comes first: align3d {command} {loose[0]} ...")
        if variant is not None:
            raise ValueError(f"--variant {variant} is of a recipe, and there is none; `align3d list recipes` shows all")
        return {}
    recipe = recipes.get(name, variant)
    if recipe.command != command:
        raise ValueError(f"recipe {name} is of another command: align3d {recipe.command} {name} ...")
    return {**recipe.settings, "options": recipe.options}


def recorded(name: str | None, variant: str | None) -> dict[str, Any]:
    """What config.json says of the recipe, under "recipe"; nothing if there was none."""
    if name is None:
        return {}
    return {"recipe": {"name": name, "variant": recipes.get(name, variant).variant}}
