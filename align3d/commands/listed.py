"""Parts with their options in one text: dnc, "dnc(alpha=0.5)", or "strict=dnc(alpha=0.99)" under another name.

Rewards may be added up: "hpsv2.1(weights=hps) + 0.2*dnc[views=min, warmup=20]". Round brackets hold the options of the
reward, square ones what is made of its values (rewards.combined.Scale). A minus has a blank before it, as names have
dashes in them.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import tyro

from align3d.commands.parts import load_part, table
from align3d.commands.reading import read
from align3d.rewards.score import make

if TYPE_CHECKING:
    from collections.abc import Sequence

LABEL = re.compile(r"\s*(?P<label>[\w.-]+)\s*=")
PLAIN = re.compile(r"[A-Za-z_][\w.:-]*")
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(rf"\s*(?P<sign>[+-]?)\s*(?:(?P<weight>{NUMBER})\s*\*\s*)?(?P<name>{PLAIN.pattern})\s*")
TAKEN = ("fid", "diversity")  # what is watched beside rewards
SUM = "combined"  # what a sum of rewards is called that is called nothing
ENTRY = "NAME, NAME(option=value, ...) or CALLED=NAME(...)"
SUMS = 'nor a sum of them, such as "hpsv2.1 + 0.2*dnc[views=min]"'


@dataclass(frozen=True)
class Listed:
    """A part of a list."""

    name: str  # of the table, or package.module:attribute
    part: Any  # an object, with its options


@dataclass(frozen=True)
class Term:
    """A term of a sum, as it is written."""

    weight: float
    name: str
    options: str | None  # between round brackets
    scale: str | None  # between square brackets


def listed(kind: str, texts: Sequence[str]) -> dict[str, Listed]:
    """The parts that some texts stand for, by what they are called.

    Args:
        kind: reward or features.
        texts: NAME, NAME(option=value, ...) or CALLED=NAME(...); values as on the command line, without commas. Or a
            sum of rewards.

    Raises:
        ValueError: If a text or an option cannot be read, there is no such part, two are called the same, or a reward
            is normalised by what it has seen in training, of which there is none here.
    """
    found: dict[str, Listed] = {}
    for text in [part for several in texts for part in apart(several)]:
        label, one = entry(kind, text)
        if label in found:
            raise ValueError(f"{kind} {label!r} is asked for twice; drop one, or call it otherwise: mine={text}")
        if getattr(one.part, "scales", False):
            raise ValueError(f"{kind} {text!r}: only what is trained on can be normalised; drop normalise here")
        found[label] = one
    return found


def apart(text: str) -> list[str]:
    """A text at its commas, those in brackets left out."""
    depth, parts = 0, [""]
    for c in text:
        depth += (c in "([") - (c in ")]")
        parts = [*parts, ""] if c == "," and depth == 0 else [*parts[:-1], parts[-1] + c]
    return parts


def choose(kind: str, text: str) -> tuple[str, Any]:
    """What to call the part that is chosen with --KIND, and the part: of a mere name, as the table has it."""
    if kind != "reward" or PLAIN.fullmatch(text):
        return text, load_part(kind, text)
    label, one = entry(kind, text)
    return label, one.part


def entry(kind: str, text: str) -> tuple[str, Listed]:
    """What a text calls a part, and the part.

    Raises:
        ValueError: As `listed`.
    """
    match = LABEL.match(text)
    terms = split(kind, text, match.end() if match else 0)
    (one, *others) = terms
    if not others and one.weight == 1 and one.scale is None:
        label, found = one.name, Listed(one.name, made(kind, one.name, one.options))
    elif kind != "reward":
        raise ValueError(f"{kind} {text!r} is no {ENTRY}; only rewards can be added up")
    else:
        label, found = SUM, Listed(SUM, combined(terms))
    called = match["label"] if match else label
    if kind == "reward" and (called in TAKEN or (called != found.name and called in table(kind))):
        what = "a number of its own" if called in TAKEN else "another reward"
        raise ValueError(f"{kind} {text!r}: {called} is {what}; call it otherwise")
    return called, found


def split(kind: str, text: str, start: int = 0) -> list[Term]:
    """The terms of a sum, one or more.

    Raises:
        ValueError: If the text is something else; says from where on.
    """
    found: list[Term] = []
    at = start
    while at < len(text) or not found:
        match = TERM.match(text, at)
        if match is None or (found and not match["sign"]):
            rest = f": cannot go on from {text[at:].strip()!r}" if found else ""
            raise ValueError(f"{kind} {text!r} is no {ENTRY}{', ' + SUMS if kind == 'reward' else ''}{rest}")
        options, at = bracket(kind, text, match.end(), "()")
        scale, at = bracket(kind, text, at, "[]")
        weight = float(match["weight"] or 1) * (-1 if match["sign"] == "-" else 1)
        found.append(Term(weight, match["name"], options, scale))
    return found


def bracket(kind: str, text: str, at: int, pair: str) -> tuple[str | None, int]:
    """What stands in the bracket that begins here, and where to go on; None if none does."""
    if text[at : at + 1] != pair[0]:
        return None, at
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == pair[0]) - (text[i] == pair[1])
        if not depth:
            end = i + 1 + len(text[i + 1 :]) - len(text[i + 1 :].lstrip())
            return text[at + 1 : i], end
    raise ValueError(f"{kind} {text!r} is no {ENTRY}: its {pair[0]} is not closed")


def combined(terms: Sequence[Term]) -> Any:
    """A sum of rewards."""
    from align3d.rewards.combined import Combined, Scale
    from align3d.rewards.combined import Term as Weighed

    found: dict[str, Weighed] = {}
    for term in terms:
        name, number = term.name, 1
        while name in found:
            number += 1
            name = f"{term.name}-{number}"
        reward = made("reward", term.name, term.options)
        scale = options_of(Scale, f"reward {term.name}", term.scale, "[]")
        try:
            found[name] = Weighed(reward=reward, weight=term.weight, **vars(scale))
        except ValueError as error:
            raise ValueError(f"reward {name}: {error}") from None
    return Combined(found)


def made(kind: str, name: str, options: str | None) -> Any:
    """A part with its options, as they stand between the brackets."""
    part = load_part(kind, name)
    if is_dataclass(part) and isinstance(part, type):
        return options_of(part, f"{kind} {name}", options, "()")
    if options and options.strip():
        raise ValueError(f"{kind} {name} has no option {options.partition('=')[0].strip()!r}; known: none")
    return make(part, kind) if isinstance(part, type) else part


def options_of(part: type, what: str, options: str | None, pair: str) -> Any:
    """A dataclass from `option=value, ...`.

    Raises:
        ValueError: If an option is unknown, missing, or wrong; `what` says whose, `pair` how they are bracketed.
    """
    own = {f.name: f for f in fields(part)}
    given: dict[str, str] = {}
    for option in options.split(",") if options and options.strip() else ():
        key, _, value = (text.strip() for text in option.partition("="))
        if key not in own:
            where = "" if pair == "()" else f" in {pair}"
            raise ValueError(f"{what} has no option {key!r}{where}; known: {', '.join(own) or 'none'}")
        if key in given:
            raise ValueError(f"{what}: {key} is given twice")
        given[key] = value
    missing = [f.name for f in own.values() if f.default is f.default_factory is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}: {what.split()[-1]}({missing[0]}=...)")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    try:
        return read(tyro.conf.FlagConversionOff[part], what, flags)
    except ValueError as error:
        raise ValueError(f"{what}{pair[0]}{options}{pair[1]}: {error}") from None
