'''From a scene to one number: cameras, rendering, a reward, and the mean over the views.

A reward of your own is a function of views and prompts, used as `--reward mypackage.mymodule:redness`:

    def redness(views, prompts):
        """How much redder than green each view is: (B, V)."""
        red, green, _ = views.rgb.unbind(2)
        return (red - green).mean((-2, -1))

It is taken to be differentiable and to read `rgb`; `redness.needs = {"rgb", "depth"}` asks for more (alpha, depth,
median_depth, normal), `redness.differentiable = False` keeps it from methods that want a gradient, and (B, 1) scores
the object as a whole. One with options is a frozen dataclass with `differentiable`, `needs` and `__call__`; its fields
become flags. A method `check(prompts)` may raise a ValueError before any work is done.
'''

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align3d.registry import blame, told
from align3d.rng import OUTSIDE
from align3d.types import CHANNELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.types import CameraSampler, Reward, Scene, Views


@dataclass(frozen=True)
class FunctionReward:
    """A plain function with what a reward has to say of itself."""

    function: Callable[[Views, Sequence[str]], Tensor]
    differentiable: bool = True
    needs: frozenset[str] = frozenset({"rgb"})

    def check(self, prompts: Sequence[str]) -> None:
        """The function's own check, if it has one."""
        getattr(self.function, "check", _nothing)(prompts)

    def __call__(self, views: Views, prompts: Sequence[str]) -> Any:
        """What the function returns; the Scorer checks it."""
        return self.function(views, prompts)


@dataclass(frozen=True)
class Scorer:
    """A Score: renders what a reward needs from random cameras and averages the reward over the views."""

    reward: Reward | type[Reward] | Callable[[Views, Sequence[str]], Tensor]  # kept as `as_reward` makes it
    cameras: CameraSampler  # from the batch's randomness to its cameras, such as scenes.cameras.CameraSampling
    noise: float = 0.0  # standard deviation of noise on the colours, against adversarial textures; 0.02 is seen
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB in [0, 1], behind the object

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", as_reward(self.reward))
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be 0 or more and finite, got {self.noise}")
        if len(self.background) != 3 or not all(0 <= value <= 1 for value in self.background):
            raise ValueError(f"background must be three numbers from 0 to 1, got {self.background}")

    @property
    def whole_groups(self) -> bool:
        """Whether samples of a prompt must be scored together, as the reward compares them."""
        return bool(getattr(self.reward, "whole_groups", False))

    def check(self, prompts: Sequence[str], group: int = 1) -> None:
        """Refuse early what the reward cannot score.

        Args:
            prompts: All that may come.
            group: Samples of a prompt in a row.

        Raises:
            ValueError: As the reward says.
        """
        if hasattr(self.reward, "check_batch"):
            self.reward.check_batch(getattr(self.cameras, "views", None), group)
        check_prompts(self.reward, prompts)

    def __call__(self, scene: Scene, prompts: Sequence[str], rng: Streams) -> Float[Tensor, "B"]:
        """The mean reward of each scene over its views.

        Args:
            scene: B scenes.
            prompts: One per scene.
            rng: One stream per scene; sample i's cameras and noise depend on its own alone.

        Raises:
            NonFiniteError: If a tensor of the scene is not finite; names it and the prompt.
            ValueError: As `call_reward` says.

        Gradient: to the scene, as far as the reward has one.
        """
        if len(rng) != len(prompts):
            raise ValueError(f"a score needs as many streams as prompts, got {len(rng)} and {len(prompts)}")
        check_scene(scene, prompts)
        wanted = [name for name in CHANNELS if name in self.reward.needs]
        views = scene.render(self.cameras(rng), want=wanted, background=self.background)
        if self.noise and views.rgb is not None:
            noise = rng.normal("render noise", tuple(views.rgb.shape[1:]), like=views.rgb)
            views = replace(views, rgb=(views.rgb + self.noise * noise).clamp(0, 1))
        inside = rng.step != OUTSIDE and hasattr(self.reward, "within")
        reward = self.reward.within(rng) if inside else self.reward
        return call_reward(reward, name_of(self.reward), views, prompts).mean(1)


def as_reward(thing: Any) -> Reward:
    """A reward from a reward, a class of rewards (with its defaults) or a plain function.

    Raises:
        ValueError: If it is none of these, or needs something that no scene renders.
    """
    reward = make(thing, "reward") if isinstance(thing, type) else thing
    if not callable(reward):
        raise ValueError(f"a reward must be callable with (views, prompts), got {type(reward).__name__}")
    if not (hasattr(reward, "differentiable") and hasattr(reward, "needs")):
        if hasattr(reward, "within") or hasattr(reward, "advance"):
            raise ValueError(
                f"reward {type(reward).__name__} must say what it `needs`, and whether it is `differentiable`"
            )
        needs = getattr(reward, "needs", ("rgb",))
        reward = FunctionReward(reward, getattr(reward, "differentiable", True), frozenset(needs))
    if not isinstance(reward.needs, (set, frozenset)):
        raise ValueError(f"`needs` of reward {name_of(reward)} must be a set of names, got {reward.needs!r}")
    unknown = set(reward.needs) - set(CHANNELS)
    if unknown or not reward.needs:
        got = ", ".join(sorted(unknown)) or "nothing"
        raise ValueError(f"reward {name_of(reward)} needs {got}; what can be rendered: {', '.join(CHANNELS)}")
    return reward


def make(part: type, kind: str) -> Any:
    """A part from its class, with its defaults; `kind` is what to call it in the error.

    Raises:
        ValueError: If it cannot be made so.
    """
    try:
        return part()
    except Exception as error:
        advice = "; give each option a default, or make it a dataclass, whose fields become flags"
        advice = advice if isinstance(error, TypeError) else ""
        raise ValueError(f"making the {kind} {part.__name__} failed: {told(error, part)}{advice}") from error


def call_reward(reward: Reward, name: str, views: Views, prompts: Sequence[str]) -> Float[Tensor, "B _"]:
    """What a reward says of views, checked.

    Args:
        reward: As `as_reward` makes it.
        name: For messages.
        views: Of B scenes from V cameras.
        prompts: One per scene.

    Returns:
        (B, V), or (B, 1) of a reward of whole objects.

    Raises:
        ValueError: If the reward raises an exception, unless it is one of this package; or as `check_score` says.
    """

    def hint(error: Exception) -> str:
        missing = [channel for channel in CHANNELS if getattr(views, channel) is None]
        if "NoneType" not in str(error) or not missing:
            return ""
        return f"views.{', '.join(missing)} are None because `needs` does not ask for them; set `needs`"

    check_views(views, name, prompts)
    with blame(f"reward {name}", _written(reward), hint):
        score = reward(views, prompts)
    check_score(score, name, views, prompts)
    return score


def check_views(views: Views, name: str, prompts: Sequence[str]) -> None:
    """Refuse pictures that no reward can judge.

    Raises:
        ValueError: If there is not a prompt for each object, or colours are no floating-point numbers in [0, 1].
        NonFiniteError: If a colour is not finite; names the prompt.
    """
    from align3d.diffusion.sampler import require_finite
    from align3d.rewards.preprocess import require_colours

    if len(prompts) != views.cameras.c2w.shape[0]:
        raise ValueError(
            f"reward {name} needs a prompt for each of {views.cameras.c2w.shape[0]} objects, got {len(prompts)}"
        )
    if views.rgb is None or views.rgb.is_meta:
        return
    if not views.rgb.is_floating_point():
        raise ValueError(f"reward {name} needs colours as floating-point numbers from 0 to 1, got {views.rgb.dtype}")
    if not math.isfinite(views.rgb.detach().sum()):  # a sum keeps a NaN or an infinity
        require_finite(views.rgb.detach(), prompts, "colour", f"in the views that reward {name} is to judge")
    require_colours(views.rgb, name)


def check_prompts(reward: Reward, prompts: Sequence[str]) -> None:
    """The reward's own check of the prompts, if it has one.

    Raises:
        ValueError: As the check says, or if it fails.
    """
    try:
        with blame(f"the check of reward {name_of(reward)}", _written(reward)):
            getattr(reward, "check", _nothing)(prompts)
    except ValueError as error:
        if isinstance(error.__cause__, (ValueError, FileNotFoundError)):  # what it is for: its own words are enough
            raise error.__cause__ from None
        raise


def known(prompts: Sequence[str], rewards: Mapping[str, Reward]) -> list[str]:
    """The prompts that all rewards can score.

    Raises:
        ValueError: If fewer than two are left; says how many each reward knows, and why the first is refused.
    """
    refused: dict[str, dict[str, str]] = {name: {} for name in rewards}
    for name, reward in rewards.items():
        for prompt in prompts:
            try:
                check_prompts(reward, [prompt])
            except ValueError as error:
                refused[name][prompt] = str(error)
    left = [prompt for prompt in prompts if not any(prompt in bad for bad in refused.values())]
    if len(left) < 2:
        said = [f"{name} refuses {len(bad)} ({next(iter(bad.values()))})" for name, bad in refused.items() if bad]
        raise ValueError(
            f"two prompts or more are needed that all rewards can score, {len(left)} of {len(prompts)} are left"
            + "".join(f"; {text}" for text in said)
        )
    return left


def _written(reward: Any) -> Any:
    """What the user wrote of a reward."""
    return reward.function if isinstance(reward, FunctionReward) else reward


def name_of(reward: Reward) -> str:
    """What to call a reward in messages: its class, or its function."""
    if isinstance(reward, FunctionReward):
        return getattr(reward.function, "__name__", type(reward.function).__name__)
    return type(reward).__name__


def check_scene(scene: Scene, prompts: Sequence[str]) -> None:
    """Refuse what no renderer can show.

    A rasteriser drops a Gaussian that is not a number before anyone sees it: the picture is the background's, the
    gradient 0, and training would go on with nothing. So the scene is looked at and not the picture. Costs one sum over
    its tensors, 0.2 ms for a batch of 8 with 16,384 Gaussians each.

    Args:
        scene: B scenes; its attributes are looked at, those that are tensors of real numbers with B rows.
        prompts: One per scene.

    Raises:
        NonFiniteError: If one is not finite; names it and the prompt.
    """
    import torch

    from align3d.diffusion.sampler import require_finite

    fields = {
        name: x.detach()
        for name, x in getattr(scene, "__dict__", {}).items()
        if isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim and len(x) == len(prompts)
    }
    if not fields or bool(torch.isfinite(sum(x.sum() for x in fields.values()))):  # a sum keeps a NaN or an infinity
        return
    for name, x in fields.items():  # a sum may also overflow, so this may find nothing
        require_finite(x, prompts, f"{name} of the scene", "before rendering")


def check_score(score: Any, name: str, views: Views, prompts: Sequence[str]) -> None:
    """Refuse what no reward may return.

    Args:
        score: What the reward called `name` returned.
        name: For messages.
        views: Of B scenes from V cameras, which it looked at.
        prompts: One per scene.

    Raises:
        ValueError: If it is no floating-point tensor (B, V) or (B, 1), or on another device.
        NonFiniteError: If it is not finite; names the reward, the prompt and what else is not finite.
    """
    import torch

    from align3d.diffusion.sampler import NonFiniteError

    num_prompts, num_views = len(prompts), views.cameras.c2w.shape[1]
    allowed = ((num_prompts, num_views), (num_prompts, 1))
    shape = tuple(score.shape) if isinstance(score, torch.Tensor) else None
    if shape not in allowed:
        got = f"shape {shape}" if shape is not None else type(score).__name__
        raise ValueError(f"reward {name} must return a tensor (B, V) = {allowed[0]}, or (B, 1), got {got}")
    if not score.is_floating_point():
        raise ValueError(f"reward {name} must return floating-point numbers, got {score.dtype}")
    seen = [x for x in (getattr(views, channel) for channel in CHANNELS) if x is not None]
    device = seen[0].device if seen else views.cameras.c2w.device
    if score.device != device:  # "meta" has no numbers at all, and others would meet only in the loss
        raise ValueError(f"reward {name} must return a tensor on {device}, the device of the views, got {score.device}")
    finite = torch.isfinite(score.detach())
    if not bool(finite.all()):
        row, view = (~finite).nonzero()[0].tolist()
        message = f"reward {name} returned {score[row, view].item()} for {prompts[row]!r}, view {view + 1}"
        fields = [name for name in CHANNELS if getattr(views, name) is not None]
        bad = [name for name in fields if not bool(torch.isfinite(getattr(views, name)[row]).all())]
        cause = (
            f"the rendered {', '.join(bad)} of that scene is not finite either" if bad else "the rendering is finite"
        )
        raise NonFiniteError(f"{message}; {cause}")


def _nothing(prompts: Sequence[str]) -> None:
    """No check."""
