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
FILMS = ("optimization.mp4", "optimization.webp")
MAX_TEXT = 64 << 20  # bytes of a run's text file; longer ones are cut
MOST_PICTURES = 24  # of a step


@dataclass(frozen=True)
class Samples:
    """What was drawn after some number of updates; the same prompts and seeds every time."""

    pictures: list[Path]
    prompts: list[str] = field(default_factory=list)  # NN.png and NN.webp show prompt NN, with the first seed
    seeds: list[int] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)  # means over the samples
    diversity: float | None = None  # evaluate.Evaluation.diversity, mean over the prompts

    @classmethod
    def read(cls, folder: Path, run: Path) -> Samples:
        """What is in one folder of samples, nothing from outside the run's."""
        files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES] if folder.is_dir() else []
        inside = [p for p in files if p.resolve().is_relative_to(run.resolve())]
        about = _json(_text(folder / "samples.json"))
        prompts, seeds, means = about.get("prompts"), about.get("seeds"), about.get("mean")
        return cls(
            inside[:MOST_PICTURES],
            [str(prompt) for prompt in prompts] if isinstance(prompts, list) else [],
            [seed for seed in seeds if isinstance(seed, int)] if isinstance(seeds, list) else [],
            {name: means[name] for name in means if is_number(means, name)} if isinstance(means, dict) else {},
            float(about["diversity"]) if is_number(about, "diversity") else None,
        )

    def picture(self, name: str) -> Path | None:
        """The picture of that file name."""
        return next((path for path in self.pictures if path.name == name), None)


@dataclass(frozen=True)
class Filmed:
    """The film of an optimisation."""

    path: Path
    last: Path | None  # a picture: the last frame

    @classmethod
    def of(cls, folder: Path) -> Filmed | None:
        """That of a run, if it has one, and if it does not lie outside of its folder."""
        frames = sorted((folder / "frames").glob("step-*.webp"), key=lambda path: (len(path.name), path.name))
        found = [path for path in (*map(folder.joinpath, FILMS), *frames[-1:]) if path.is_file()]
        inside = [path for path in found if path.resolve().is_relative_to(folder.resolve())]
        film = next((path for path in inside if path.name in FILMS), None)
        return film and cls(film, next((path for path in inside if path in frames), None))


@dataclass(frozen=True)
class Run:
    """A training run, finished or not."""

    config: dict[str, Any] = field(default_factory=dict)  # config.json
    metrics: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl, ascending
    samples: dict[int, Samples] = field(default_factory=dict)  # updates done -> what was drawn then, ascending
    watch: dict[str, Any] = field(default_factory=dict)  # watch/base.json of a run that is watched
    best: dict[str, Any] = field(default_factory=dict)  # best/best.json
    film: Filmed | None = None  # how its scene came to be

    @classmethod
    def read(cls, folder: Path) -> Run:
        """What is in the folder; an empty run if there is nothing."""
        config = _json(_text(folder / "config.json"))
        rows = [row for row in map(_json, _text(folder / "metrics.jsonl").splitlines()) if is_number(row, "step")]
        samples = {}
        for step in sorted((folder / "samples").glob("step-*")):
            number_, found = step.name.removeprefix("step-"), Samples.read(step, folder)
            if number_.isdecimal() and found.pictures:
                samples[int(number_)] = found
        watch, best = (_json(_text(folder / name)) for name in ("watch/base.json", "best/best.json"))
        rows.sort(key=lambda row: row["step"])
        return cls(config, rows, dict(sorted(samples.items())), watch, best, Filmed.of(folder))

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

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """The terms of a reward that is a sum, by name; none of other rewards, or of a damaged configuration."""
        reward = self.settings.get("reward")
        terms = reward.get("terms") if isinstance(reward, dict) else None
        whole = isinstance(terms, dict) and all(isinstance(term, dict) for term in terms.values())
        return terms if whole else {}

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
