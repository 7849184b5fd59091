"""Conditions on numbers that were seen, as --stop-when has them."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
CONDITION = re.compile(r"(\S+?)\s*(<=|>=|<|>)\s*(\S+)")


@dataclass(frozen=True)
class Condition:
    """A number, compared with a limit."""

    name: str
    op: str  # of OPERATORS
    limit: float

    def __str__(self) -> str:
        return f"{self.name} {self.op} {self.limit:g}"

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Whether it holds; not if the number is missing."""
        return self.name in numbers and OPERATORS[self.op](numbers[self.name], self.limit)


def parse(text: str) -> tuple[Condition, ...]:
    """Conditions of which one is enough: "fid > 40 or dnc < 0.8"; none of an empty text.

    Raises:
        ValueError: If the text is something else, or a limit is no finite number.
    """
    found = []
    for part in re.split(r"\s+or\s+", text.strip()) if text.strip() else []:
        match = CONDITION.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f'stop-when must be NAME < NUMBER, with <, <=, > or >=, several joined by "or"; got {part!r}'
            )
        name, op, number = match.groups()
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise ValueError(f"stop-when must compare with a finite number, got {part!r}")
        found.append(Condition(name, op, limit))
    return tuple(found)
