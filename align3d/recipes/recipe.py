"""What a recipe is: the whole configuration of a run, under a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align3d import registry
from align3d.config import instance
from align3d.methods import METHODS
from align3d.models import MODELS
from align3d.priors import PRIORS
from align3d.rewards import REWARDS
from align3d.scenes.rings import RINGS
from align3d.starts import STARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

Settings = dict[str, Any]
PARTS: dict[str, Mapping[str, str]] = {
    "model": MODELS,
    "prior": PRIORS,
    "method": METHODS,
    "scene": STARTS,
    "reward": REWARDS,
    "loop": {"loop": "align3d.loop:Loop"},
    "cameras": {"cameras": "align3d.scenes.cameras:CameraSampling", **RINGS},
}


@dataclass(frozen=True)
class Recipe:
    """The configuration of a run."""

    name: str
    variant: str | None  # such as paper or released; None: there is one
    command: str  # that takes it: train or optimize
    summary: str  # a line
    settings: dict[str, Settings]  # by kind of part, each with its "name" where there are several: option -> value
    options: Settings = field(default_factory=dict)  # of the command itself, such as noise and keep_above

    def part(self, kind: str, **own: Any) -> Any:
        """A part of the run as an object, such as `part("model", weights=Path("weights")).load("cuda")`.

        Args:
            kind: A key of `settings`: model or prior, method, scene, reward, loop, cameras.
            **own: Options to set or to set differently.
        """
        settings = dict(self.settings[kind])
        name = settings.pop("name", kind)
        part = registry.load(PARTS[kind], name, kind)
        lacking = sorted((settings | own).keys() - part.__dataclass_fields__.keys())
        if lacking:
            raise TypeError(f"{part.__name__} has no option {', '.join(lacking)}")
        return instance(part, settings | own)
