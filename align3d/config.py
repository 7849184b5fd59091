"""What config.json says of the parts of a run: their names, as `--model NAME` has them, and their fields; and back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d import registry
from align3d.methods import METHODS
from align3d.models import MODELS
from align3d.rewards import REWARDS
from align3d.rewards.combined import Combined
from align3d.scenes.density import DENSITIES

PARTS = {"density": DENSITIES}  # of parts: kind -> table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from align3d.types import BaseModel, Method, Score, Subject


def described(part: Any, name: str | None = None) -> dict[str, Any]:
    """A part's name, if it has one, and its fields, if it is a dataclass; of a sum of rewards, its terms."""
    values = {f.name: inner(getattr(part, f.name)) for f in fields(part) if f.init} if is_dataclass(part) else {}
    for kind in getattr(part, "parts", ()):
        values[kind] = described(getattr(part, kind), name_of(getattr(part, kind), PARTS[kind]))
    if isinstance(part, Combined):
        terms = part.terms.items()
        values = {"terms": {name: described(term) | {"reward": of_reward(term.reward)} for name, term in terms}}
    return values if name is None else {"name": name, **values}


def inner(value: Any) -> Any:
    """A field's value; of options in groups, their fields."""
    return described(value) if is_dataclass(value) and not isinstance(value, type) else value


def instance(part: type, options: Mapping[str, Any]) -> Any:
    """A part with those of the options that it has; the rest keep their defaults.

    Args:
        part: A dataclass.
        options: By name; those in groups, and parts of the part with their names, are dictionaries, as `described`
            gives them.

    Raises:
        ValueError: If an option has a value that the part cannot have.
    """
    own = {f.name: f for f in fields(part)}
    values = {}
    for name in own.keys() & options.keys():
        value, group = options[name], own[name].default_factory
        if isinstance(value, dict) and value.get("name") in PARTS.get(name, ()):  # a file does not choose other code
            group = registry.load(PARTS[name], value["name"], name)
        if isinstance(value, dict) and is_dataclass(group):
            value = instance(group, value)
        if isinstance(value, str) and "Path" in str(own[name].type):
            value = Path(value)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return part(**values)
    except TypeError as error:
        raise ValueError(f"the run's config.json has options that {part.__name__} cannot have: {error}") from None


def name_of(part: Any, table: Mapping[str, str]) -> str:
    """The name that a table has for an object's class or for a function, else where that is defined."""
    thing = part if hasattr(part, "__qualname__") else type(part)
    path = f"{thing.__module__}:{thing.__qualname__}"
    return next((name for name, known in table.items() if known == path), path)


def of_reward(reward: Any, called: str | None = None) -> dict[str, Any]:
    """A reward's name and fields; those of the function, where it is a plain one.

    Args:
        reward: As `as_reward` makes it.
        called: By the user; the name of a sum, and of what no table has.
    """
    written = getattr(reward, "function", reward)
    name = name_of(written, REWARDS)
    if isinstance(written, Combined):
        name = called or "combined"
    elif called is not None and name not in REWARDS:
        name = called
    return described(written, name)


def of_python(model: BaseModel | Subject, method: Method, score: Score, loop: Any, watch: Any = None) -> dict[str, Any]:
    """The configuration of a run that was started from Python, the same as the command line's where its parts tell.

    `loop` is a loop.Loop. A model tells by `options`, the dataclass that it was loaded from; a score by `reward`,
    `cameras`, `noise` and `background`, as rewards.score.Scorer does; a watcher by `recorded()`.
    """
    config: dict[str, Any] = {"method": described(method, name_of(method, METHODS)), "loop": described(loop)}
    if getattr(model, "options", None) is not None:
        config["model"] = described(model.options, name_of(model.options, MODELS))
    reward = getattr(score, "reward", None)
    if reward is not None:
        config["reward"] = of_reward(reward)
    if is_dataclass(getattr(score, "cameras", None)):
        config["cameras"] = described(score.cameras)
    if hasattr(watch, "recorded"):
        config["watch"] = watch.recorded()
    return config | {name: getattr(score, name) for name in ("noise", "background") if hasattr(score, name)}
