"""Conditions on what a look sees, as --stop-when has them: NAME op LIMIT, several joined by "or".

A LIMIT is a number, or relative to the number of the base model, in one of three units:

    base - 0.05     in the number's own unit
    base - 2sd      standard deviations of the base model's samples: how far, by the unit of the report's chart
    base - 3se      standard errors of the look's change from the base model: how surely, whatever the size
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
PREFIX = "watch."  # may stand before a name
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
FLAGS = re.IGNORECASE | re.ASCII
CONDITION = re.compile(r"(?:watch\.)?([^ <>=]+) ?(<=|>=|<|>) ?(.+)", FLAGS)
ABSOLUTE = re.compile(rf"[+-]?{NUMBER}", FLAGS)
RELATIVE = re.compile(rf"base(?: ?([+-]) ?({NUMBER}) ?(sd|se)?)?", FLAGS)


@dataclass(frozen=True)
class Base:
    """What the base model has."""

    numbers: Mapping[str, float] = field(default_factory=dict)  # as a look has them; of fid, the floor
    spread: Mapping[str, float] = field(default_factory=dict)  # of each reward over its samples, standard deviation


@dataclass(frozen=True)
class Condition:
    """A number, compared with a limit."""

    name: str
    op: str  # of OPERATORS
    limit: float  # or, with a unit, what is added to the base model's number
    unit: Literal["", "base", "sd", "se"] = ""  # "" = the limit is absolute; base = the number's own

    def __str__(self) -> str:
        name = f"{PREFIX}{self.name}" if self.name.lower().startswith(PREFIX) else self.name
        return f"{name} {self.op} {self._limit()}"

    def _limit(self) -> str:
        if not self.unit:
            return _shortest(self.limit)
        if self.unit == "base" and not self.limit:
            return "base"
        sign = "-" if self.limit < 0 else "+"
        return f"base {sign} {_shortest(abs(self.limit))}{'' if self.unit == 'base' else f' {self.unit}'}"

    def limit_at(self, numbers: Mapping[str, float], base: Base) -> float:
        """The limit as a number, at a look.

        Raises:
            ValueError: If the base model's number or the unit's size is missing.
        """
        if not self.unit:
            return self.limit
        sizes = {"base": 1.0, "sd": base.spread.get(self.name), "se": numbers.get(f"{self.name}_error")}
        start, size = base.numbers.get(self.name), sizes[self.unit]
        for value, what in ((start, "number of the base model"), (size, self.unit)):
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"stop-when has {str(self)!r}, but {self.name} has no {what} at this look, {value!r}")
        return start + self.limit * size

    def holds(self, numbers: Mapping[str, float], base: Base) -> bool:
        """Whether it holds at a look; not if the number is missing."""
        return self.name in numbers and OPERATORS[self.op](numbers[self.name], self.limit_at(numbers, base))


@dataclass(frozen=True)
class Met:
    """A condition that holds at a look."""

    condition: Condition
    limit: float  # as a number, at that look

    @property
    def name(self) -> str:
        """What was compared."""
        return self.condition.name

    def __str__(self) -> str:
        return f"{self.condition} ({self.limit:.4g})" if self.condition.unit else str(self.condition)


def met(conditions: Sequence[Condition], numbers: Mapping[str, float], base: Base) -> Met | None:
    """The first condition that holds at a look.

    Raises:
        ValueError: If a limit is relative to something that is missing.
    """
    for condition in conditions:
        if condition.holds(numbers, base):
            return Met(condition, condition.limit_at(numbers, base))
    return None


def parse(text: str) -> tuple[Condition, ...]:
    """Conditions of which one is enough: "fid > base + 10 or dnc < 0.8"; none of an empty text.

    Blanks and case matter only in names; "watch." before a name is dropped.

    Raises:
        ValueError: If the text is something else, or a number is not finite.
    """
    text = " ".join(text.split())
    return tuple(_condition(part) for part in re.split(" or ", text, flags=FLAGS)) if text else ()


def _condition(text: str) -> Condition:
    match = CONDITION.fullmatch(text)
    name, op, limit = match.groups() if match else ("", "", "")
    if ABSOLUTE.fullmatch(limit):
        found = Condition(name, op, float(limit))
    elif relative := RELATIVE.fullmatch(limit):
        sign, number, unit = relative.groups(default="")
        found = Condition(name, op, float(f"{sign}{number or 0}"), unit.lower() or "base")
    else:
        found = None
    if found is None or not math.isfinite(found.limit):
        raise ValueError(
            'stop-when must be NAME < LIMIT, with <, <=, > or >=, several joined by "or"; a LIMIT is a finite number, '
            f"base, or base - NUMBER, which may be in sd or se as in base - 2sd; got {text!r}"
        )
    return found


def _shortest(number: float) -> str:
    """The number in as few characters as say it exactly."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)
