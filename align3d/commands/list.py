"""`align3d list`: what there is to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from align3d import recipes
from align3d.commands import TABLES
from align3d.commands.parts import load_part, table

Kind = Literal["all", "models", "methods", "rewards", "priors", "scenes", "densities", "cameras", "features", "recipes"]


@dataclass(frozen=True)
class List:
    """Print the known models, methods, rewards, priors, scenes, their densities, cameras, networks and recipes."""

    kind: Annotated[Kind, tyro.conf.Positional] = "all"  # which table


def run(options: List) -> None:
    """Print one line per entry."""
    for kind in TABLES:
        title = "densities" if kind == "density" else kind.removesuffix("s") + "s"
        if options.kind in ("all", title):
            if options.kind == "all":
                print(title)
            width = max(14, *map(len, table(kind)))
            for name in table(kind):
                print(f"  {name:<{width}} {summary(load_part(kind, name))}")
    if options.kind == "recipes":
        for name in recipes.RECIPES:
            print(f"  {name:<36} {recipes.get(name).summary}")
    elif options.kind == "all":
        print(f"recipes\n  {len(recipes.RECIPES)} published runs: `align3d list recipes`")


def summary(part: object) -> str:
    """The first line of a docstring; of a reward, also whether methods that need its gradient refuse it."""
    said = (part.__doc__ or "").strip().partition("\n")[0]
    return said if getattr(part, "differentiable", True) else f"{said} Not differentiable: ddpo alone trains on it."
