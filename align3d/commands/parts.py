"""The parts that the command line knows by name, and those of the user's own modules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d import registry
from align3d.commands import TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping

MUST_HAVE = {
    "model": "load",
    "method": "losses",
    "prior": "load",
    "scene": "subject",
    "density": "refine",
}  # kind of part -> what it must be able to do


def table(kind: str) -> Mapping[str, str]:
    """The table of known names of a kind (a key of TABLES)."""
    return registry.load({}, TABLES[kind], "table")


def load_part(kind: str, name: str) -> Any:
    """The class, or the finished object, that a name of the given kind stands for.

    A module of the user's own is also looked for in the current folder.
    """
    here = str(Path.cwd())
    if ":" in name and here not in sys.path:
        sys.path.append(here)
    part = registry.load(table(kind), name, kind)
    method = MUST_HAVE.get(kind)
    if method is not None and not callable(getattr(part, method, None)):
        raise ValueError(f"{kind} {name!r} has no {method}(), so it is no {kind}; docs/extending.md shows one")
    return part
