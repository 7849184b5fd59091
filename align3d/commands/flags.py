"""Flags from dataclasses: one parser out of a command's own options and those of the parts that were chosen by name."""

from __future__ import annotations

import itertools
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from align3d import registry
from align3d.commands.earlier import model_of
from align3d.commands.listed import choose
from align3d.commands.parts import load_part, table
from align3d.commands.reading import read
from align3d.config import instance
from align3d.rewards.score import make

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def parse(options_class: type, command: str, args: Sequence[str]) -> tuple[Any, dict[str, Any]] | None:
    """A command's options and parts, from its arguments.

    Args:
        options_class: The command's dataclass; see align3d.commands for its class variables.
        command: Its name.
        args: What follows the name.

    Returns:
        The options and the keyword arguments of the command's `run`; None if help was asked for, and printed.

    Raises:
        ValueError: If the arguments are wrong, in one line.
    """
    args = [_expand(arg, getattr(options_class, "shorthands", {})) for arg in args]
    if hasattr(options_class, "first") and args and not args[0].startswith("-"):
        args = [options_class.first, *args]
    parts, groups = getattr(options_class, "parts", {}), getattr(options_class, "groups", {})
    wants_help = "-h" in args or "--help" in args
    before = _before(options_class, args)
    parts = {kind: _known(kind, before) or default for kind, default in parts.items()}
    names = {kind: value_of(f"--{kind}", args, default) for kind, default in parts.items()}
    missing = [kind for kind, name in names.items() if name is None]
    if missing and not wants_help:
        kind = missing[0]
        known = ", ".join(sorted(table(kind)))
        raise ValueError(f"align3d {command} needs --{kind} NAME; known: {known}, or give package.module:attribute")

    found = {}
    for kind, name in names.items():
        if name is not None:
            names[kind], found[kind] = choose(kind, name)
    classes = {kind: part for kind, part in found.items() if isinstance(part, type) and is_dataclass(part)}
    classes |= {name: registry.load({}, path, "options") for name, path in groups.items()}
    layout: list[tuple[Any, ...]] = [_own(options_class, before.get("options", {}))]
    optimises = getattr(options_class, "optimises", None)
    layout += [_name_flag(kind, default, optimises=optimises) for kind, default in parts.items()]
    for name, part in classes.items():
        told = before.get(name, {})  # options of an earlier run are this one's defaults, if it is the same part
        same = told and told.get("name", names.get(name)) == names.get(name)
        layout += _flags_of(name, part, told if same else {}, args)
    wanted = make_dataclass(command, layout, kw_only=True)
    wanted.__doc__ = options_class.__doc__
    values = _tyro(wanted, command, args)
    if values is None:
        return None
    chosen = {name: getattr(values, name) for name in classes}
    for kind, part in found.items():  # objects, and classes that are no dataclasses: there is nothing to set
        if kind not in classes:
            chosen[kind] = make(part, kind) if isinstance(part, type) else part
    return values.options, chosen | ({"names": names} if parts else {})


def _expand(arg: str, shorthands: Mapping[str, str]) -> str:
    flag, equals, value = arg.partition("=")
    return shorthands.get(flag, flag) + equals + value


def value_of(flag: str, args: Sequence[str], default: str | None = None) -> str | None:
    """The last value of `--flag VALUE` or `--flag=VALUE`; a bare flag is left for the parser to complain about."""
    value = default
    for arg, after in itertools.pairwise([*args, "-"]):
        if arg == flag and not after.startswith("-"):
            value = after
        elif arg.startswith(f"{flag}="):
            value = arg.partition("=")[2]
    return value


def _before(options_class: type, args: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a recipe or an earlier run that the arguments name says: kind -> options, and the part's name.

    The command's own options are under "options".
    """
    if hasattr(options_class, "defaults"):
        return options_class.defaults(args)
    where = getattr(options_class, "earlier", None)
    path = value_of(where, args) if isinstance(where, str) else where(args) if where else None
    return {} if path is None else {"model": model_of(Path(path))}


def _own(options_class: type, told: Mapping[str, Any]) -> tuple[Any, ...]:
    """The field of a command's own options, with the defaults that it is told."""
    kind = Annotated[options_class, tyro.conf.arg(name="")]
    if not told:
        return ("options", kind)
    default = object.__new__(options_class)  # what the user has yet to give is missing in it
    for f in fields(options_class):
        object.__setattr__(default, f.name, told.get(f.name, tyro.MISSING if f.default is MISSING else f.default))
    return ("options", kind, field(default=default))


def _known(kind: str, before: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name of an earlier run's part if the table has it: a file does not get to choose code that is imported."""
    name = before.get(kind, {}).get("name")
    return name if isinstance(name, str) and name in table(kind) else None


def _name_flag(kind: str, default: str | None, above: str = "", optimises: str | None = None) -> tuple[Any, ...]:
    """The field behind `--kind`, or `--above.kind`; its value was read before: it documents and consumes the flag."""
    parts = {name: load_part(kind, name) for name in sorted(table(kind))}
    if kind == "method" and optimises is not None:
        parts = {name: part for name, part in parts.items() if getattr(part, "optimises", "model") == optimises}
    hard = {name for name, part in parts.items() if not getattr(part, "differentiable", True)}
    known = [f"{name} (not differentiable)" if name in hard else name for name in parts]
    note = f"one of {', '.join(known)}, or package.module:attribute; "
    note += 'or a sum, such as "hpsv2.1 + 0.2*dnc"; ' if kind == "reward" else ""
    note += "its own options are below" if default is not None else f"`--{kind} NAME --help` shows its own options"
    name = f"{above}.{kind}" if above else kind
    flag = (f"{name}_name".replace(".", "_"), Annotated[str, tyro.conf.arg(name=name, metavar="NAME", help=note)])
    return flag if default is None else (*flag, field(default=default))


def _flags_of(name: str, part: type, told: Mapping[str, Any], args: Sequence[str]) -> list[tuple[Any, ...]]:
    """The field behind `--NAME.FIELD`, and those behind the names of its own parts, which have a class of their own."""
    names, held = [], {}
    for kind, usual in getattr(part, "parts", {}).items():
        before = told.get(kind) or {}
        default = _known(kind, {kind: before}) or usual
        chosen = value_of(f"--{name}.{kind}", args, default)
        names.append(_name_flag(kind, default, name))
        same = before if chosen == default else {}
        found = load_part(kind, chosen)
        if not (isinstance(found, type) and is_dataclass(found)):
            raise ValueError(f"{name}.{kind} {chosen!r} is no dataclass, whose fields would be its options")
        held[kind] = instance(found, same)
    if not told and not held:
        return [(name, part)]
    options = {key: value for key, value in told.items() if key not in held}
    return [*names, (name, part, field(default=replace(instance(part, options), **held)))]


def _tyro(wanted: type, command: str, args: Sequence[str]) -> Any | None:
    """What tyro makes of the arguments; None after help."""
    return read(wanted, f"align3d {command}", args, f" (see `align3d {command} --help`)")
