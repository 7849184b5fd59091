"""Ancestral sampling with any base model."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from align3d.diffusion.schedule import at_least
from align3d.diffusion.transition import ddim
from align3d.types import BaseModel, Rollout, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from align3d.rng import Streams
    from align3d.types import Cond


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity, with the prompt and the place it came from."""


def require_finite(
    value: Float[Tensor, "B ..."], prompts: Sequence[str], what: str, where: str | Sequence[str]
) -> None:
    """Check that every row is finite.

    Args:
        value: One row per prompt.
        prompts: B prompts.
        what: What the rows are, as in "non-finite WHAT for prompt ...".
        where: The place, as in "at step 3", or one for each row.

    Raises:
        NonFiniteError: If a row is not; names the first one's prompt.
    """
    good = torch.isfinite(value).reshape(len(prompts), -1).all(1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        place = where if isinstance(where, str) else where[row]
        raise NonFiniteError(f"non-finite {what} for prompt {prompts[row]!r} {place}")


def sampling_times(model: BaseModel | Subject) -> Float[Tensor, "T"]:
    """The T = steps + 1 times that the model samples with, float32, on its device."""
    return model.schedule.times(model.steps).to(device_of(model))


def device_of(model: BaseModel | Subject) -> torch.device:
    """Where the model lives: its `device`, or else that of its adapter, or else the CPU."""
    if getattr(model, "device", None) is not None:
        return torch.device(model.device)
    parameters = () if model.adapter is None else model.adapter.parameters()
    return next((p.device for p in parameters), torch.device("cpu"))


def rollout(
    model: BaseModel,
    prompts: Sequence[str],
    times: Float[Tensor, "T"],
    rng: Streams,
    eta: float = 1.0,
    keep: bool = True,
    tell: Callable[[float], None] | None = None,
) -> Rollout:
    """Sample from noise to data in K = T - 1 steps of DDIM.

    Args:
        model: Gives the schedule, the latents' shape and the predictions.
        prompts: B texts.
        times: Descending, usually from 1 to 0; its device and type are those of the latents.
        rng: One stream per prompt; draws are named "noise" (the start) and "step0", "step1", ...
        eta: 0 is deterministic, 1 is ancestral.
        keep: Whether to keep all states; otherwise the rollout holds the last step only, as if K were 1.
        tell: Called before each step with the share of them that is done.

    Returns:
        States and predictions; x[:, -1] is the sample.

    Raises:
        ValueError: If prompts, times and rng do not fit together.
        NonFiniteError: If a prediction is not finite; names prompt and step.

    Gradient: as the caller wishes; under grad mode the whole chain is differentiable.
    """
    if not len(prompts) or len(prompts) != len(rng):
        raise ValueError(f"rollout needs prompts and one stream for each, got {len(prompts)} and {len(rng)}")
    if times.numel() < 2 or bool((times[1:] >= times[:-1]).any()):
        raise ValueError(f"times must be at least two and descend, got {times.tolist()}")
    cond = model.encode(prompts)
    x = rng.normal("noise", tuple(model.latent_shape), like=times)
    states, predictions = [x], []
    for eps, state in _steps(model, model.predict, prompts, cond, x, times, rng, eta, tell=tell):
        states, predictions = [*states, state], [*predictions, eps]
        if not keep:
            states, predictions = states[-2:], predictions[-1:]
    return Rollout(prompts, cond, times[-len(states) :], torch.stack(states, 1), torch.stack(predictions, 1))


def sample(
    model: BaseModel,
    prompts: Sequence[str],
    times: Float[Tensor, "T"],
    rng: Streams,
    tell: Callable[[float], None] | None = None,
) -> Float[Tensor, "B *L"]:
    """Clean latents, by the model's own sampler if it has one, else by ancestral steps; arguments as of `rollout`.

    Raises:
        NonFiniteError: If they are not finite; names the prompt.
    """
    if hasattr(model, "solve"):
        noise = rng.normal("noise", tuple(model.latent_shape), like=times)
        try:
            x0 = model.solve(noise, model.encode(prompts), tell)
        except FloatingPointError as error:
            row = getattr(error, "row", None)
            raise NonFiniteError(f"{error} for prompt {prompts[row]!r}" if row is not None else str(error)) from None
        if x0 is not None:
            require_finite(x0, prompts, "sample", "at the end")
            return x0
    return rollout(model, prompts, times, rng, keep=False, tell=tell).x[:, -1]


def advance(
    model: BaseModel,
    prompts: Sequence[str],
    x: Float[Tensor, "B *L"],
    times: Float[Tensor, "T"],
    rng: Streams,
    eta: float = 1.0,
    first: int = 0,
    recompute: bool = False,
) -> Rollout:
    """Go on with a chain that is under way, to be differentiated.

    Args:
        model: As for `rollout`.
        prompts: B texts; encoded anew, as the adapter may have a part in it.
        x: States at times[0].
        times: T = M + 1 times of the M steps to make, descending.
        rng: One stream per prompt.
        eta: 0 is deterministic, 1 is ancestral.
        first: How many steps led to x. Draws are named "step{first}", ...: those of a rollout that had not stopped.
        recompute: Run each step's network a second time in the backward pass instead of keeping what it computed:
            memory of one step for any M, a third more time, the same gradient.

    Returns:
        The M steps, M at least 1; x[:, -1] is the sample.

    Raises:
        NonFiniteError: If a prediction is not finite; names prompt and step.

    Gradient: to x and the adapter, under grad mode.
    """
    cond = model.encode(prompts)
    predict = model.predict
    if recompute:  # a prediction has no randomness that would have to be restored
        predict = functools.partial(checkpoint, predict, use_reentrant=False, preserve_rng_state=False)
    states, predictions = [x], []
    for eps, state in _steps(model, predict, prompts, cond, x, times, rng, eta, first):
        states, predictions = [*states, state], [*predictions, eps]
    return Rollout(prompts, cond, times, torch.stack(states, 1), torch.stack(predictions, 1))


def _steps(
    model: BaseModel,
    predict: Callable[[Tensor, Tensor, Cond], Tensor],
    prompts: Sequence[str],
    cond: Cond,
    x: Float[Tensor, "B *L"],
    times: Float[Tensor, "T"],
    rng: Streams,
    eta: float,
    first: int = 0,
    tell: Callable[[float], None] | None = None,
) -> Iterator[tuple[Float[Tensor, "B *L"], Float[Tensor, "B *L"]]]:
    """The prediction and the next state of each step from times[0] on; `first` steps led to x."""
    for k in range(len(times) - 1):
        if tell is not None:
            tell(k / (len(times) - 1))
        t, s = times[k].expand(len(prompts)), times[k + 1].expand(len(prompts))
        eps = at_least(predict(x, t, cond), x.dtype)
        require_finite(eps.detach(), prompts, "prediction", f"at step {first + k}")
        noise = rng.normal(f"step{first + k}", tuple(model.latent_shape), like=x)
        x = ddim(model.schedule, x, eps, t, s, eta).sample(noise).to(x.dtype)
        yield eps, x
