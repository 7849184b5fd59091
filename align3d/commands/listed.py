"""Parts in a list, each with its own options: dnc, "dnc(alpha=0.5)", or "strict=dnc(alpha=0.99)" under another name."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import tyro

from align3d.commands.flags import load_part, read
from align3d.rewards.score import make

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRY = re.compile(r"(?:(?P<label>[\w.-]+)=)?(?P<name>[\w.:-]+)(?:\((?P<options>.*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Listed:
    """A part of a list."""

    name: str  # of the table, or package.module:attribute
    part: Any  # an object, with its options


def listed(kind: str, texts: Sequence[str]) -> dict[str, Listed]:
    """The parts that some texts stand for, by what they are called.

    Args:
        kind: reward or features.
        texts: NAME, NAME(option=value, ...) or CALLED=NAME(...); values as on the command line, without commas.

    Raises:
        ValueError: If a text or an option cannot be read, there is no such part, or two are called the same.
    """
    found: dict[str, Listed] = {}
    for text in texts:
        match = ENTRY.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{kind} {text!r} is no NAME, NAME(option=value, ...) or CALLED=NAME(...)")
        name = match["name"]
        label = match["label"] or name
        if label in found:
            raise ValueError(f"{kind} {label!r} is asked for twice; drop one, or call it otherwise: mine={text}")
        found[label] = Listed(name, _made(kind, name, match["options"]))
    return found


def _made(kind: str, name: str, options: str | None) -> Any:
    """A part with its options, as they stand between the brackets."""
    part = load_part(kind, name)
    own = {f.name: f for f in fields(part)} if is_dataclass(part) and isinstance(part, type) else {}
    given: dict[str, str] = {}
    for option in options.split(",") if options and options.strip() else ():
        key, _, value = (text.strip() for text in option.partition("="))
        if key not in own:
            raise ValueError(f"{kind} {name} has no option {key!r}; known: {', '.join(own) or 'none'}")
        given[key] = value
    missing = [f.name for f in own.values() if f.default is f.default_factory is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{kind} {name} needs {', '.join(missing)}: {name}({missing[0]}=...)")
    if own:
        try:
            return read(
                tyro.conf.FlagConversionOff[part],
                name,
                [f"--{key.replace('_', '-')}={value}" for key, value in given.items()],
            )
        except ValueError as error:
            raise ValueError(f"{kind} {name}({options}): {error}") from None
    return make(part, kind) if isinstance(part, type) else part
