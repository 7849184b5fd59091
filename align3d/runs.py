"""What a run's folder tells, for those who look at it later; whatever is missing or damaged in it is left out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".gif")
MAX_TEXT = 64 << 20  # bytes of a run's text file; longer ones are cut
MOST_PICTURES = 12  # of a step


@dataclass(frozen=True)
class Run:
    """A training run, finished or not."""

    config: dict[str, Any] = field(default_factory=dict)  # config.json
    metrics: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl, ascending
    samples: dict[int, list[Path]] = field(default_factory=dict)  # step -> pictures

    @classmethod
    def read(cls, folder: Path) -> Run:
        """What is in the folder; an empty run if there is nothing."""
        config = _json(_text(folder / "config.json"))
        rows = [row for row in map(_json, _text(folder / "metrics.jsonl").splitlines()) if is_number(row, "step")]
        samples = {}
        for step in sorted((folder / "samples").glob("step-*")):
            number_ = step.name.removeprefix("step-")
            files = [p for p in sorted(step.iterdir()) if p.suffix.lower() in SUFFIXES] if step.is_dir() else []
            inside = [p for p in files if p.resolve().is_relative_to(folder.resolve())]
            if number_.isdecimal() and inside:
                samples[int(number_)] = inside[:MOST_PICTURES]
        return cls(config, sorted(rows, key=lambda row: row["step"]), samples)

    def part(self, kind: str) -> str | None:
        """The name of the model, method or reward, if the configuration has it."""
        value = self.settings.get(kind)
        name = value.get("name") if isinstance(value, dict) else value
        return name if isinstance(name, str) else None

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration proper, without what surrounds it."""
        inner = self.config.get("config", self.config)
        return inner if isinstance(inner, dict) else {}

    def column(self, name: str) -> list[float]:
        """A metric over the updates; NaN where it is missing."""
        return [float(row[name]) if is_number(row, name) else math.nan for row in self.metrics]


def _text(path: Path) -> str:
    """The start of a text file; empty if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""


def _json(text: str) -> dict[str, Any]:
    """A JSON object; empty if it is something else, or the line was cut off when the run was killed."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_number(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a finite number of that name."""
    value = row.get(name)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300
