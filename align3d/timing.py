"""Where an update's time goes, told by what the method calls; the method knows nothing of it.

Each call of the model or the score, seen through `Split`, begins a phase, which lasts until another begins:

    sample      predictions without gradient
    reference   predictions within `reference()`
    adapter     predictions with gradient, and the backward pass of the loss
    reward      decoding and scoring, and the gradient that the method then takes through them

So all of an update but the optimiser's step is in one of them. Where a method has the loss's backward pass go through
the reward (none here does), that part of it counts for the adapter; where it differentiates a prediction for the
reward's gradient (nabla with jacobian), so does that prediction.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from align3d.types import BaseModel, Cond, Score, Subject

PHASES = ("sample", "reference", "adapter", "reward")


class Split:
    """Seconds by phase.

    Args:
        like: A tensor on the device that computes. A GPU is waited for where phases change: a few times an update.
    """

    def __init__(self, like: Tensor):
        self.gpu = like.device if like.is_cuda else None
        self.phase: str | None = None
        self.since = 0.0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.evaluations = 0  # rows given to `predict` or `phi`, with gradient or not; one each, whatever the guidance

    def enter(self, phase: str | None) -> None:
        """From now on time counts for this phase; None is for no phase."""
        if phase == self.phase:
            return
        if self.gpu is not None:
            import torch

            torch.cuda.synchronize(self.gpu)
        now = time.perf_counter()
        if self.phase is not None:
            self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now

    def take(self) -> dict[str, float]:
        """What happened since the last call: `evaluations`; seconds as `seconds_sample`, ..., also of unused phases."""
        self.enter(None)
        taken, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        evaluations, self.evaluations = self.evaluations, 0
        return {f"seconds_{phase}": value for phase, value in taken.items()} | {"evaluations": float(evaluations)}

    def score(self, score: Score) -> Score:
        """The same score, timed."""
        return TimedScore(score, self)


class TimedScore:
    """A score as a method sees it, timed; whatever else it has is the score's own."""

    def __init__(self, score: Score, split: Split):
        self.score, self.split = score, split

    def __getattr__(self, name: str) -> Any:
        return getattr(self.score, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the score."""
        self.split.enter("reward")
        return self.score(*args, **kwargs)


class TimedModel:
    """A model as a method sees it, timed; whatever is not timed is the model's own."""

    def __init__(self, model: BaseModel | Subject, split: Split):
        self.model, self.split, self.referring = model, split, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    # From Python 3.12 on, a check of types looks for the members of BaseModel and Subject without asking __getattr__.
    schedule = property(lambda self: self.model.schedule)
    steps = property(lambda self: self.model.steps)
    latent_shape = property(lambda self: self.model.latent_shape)
    adapter = property(lambda self: self.model.adapter)
    look = property(lambda self: self.model.look)
    picture = property(lambda self: self.model.picture)

    def network(self) -> None:
        """Begin the phase that a call of the network belongs to."""
        import torch

        self.split.enter("reference" if self.referring else "adapter" if torch.is_grad_enabled() else "sample")

    def encode(self, prompts: Sequence[str]) -> Cond:
        """As the model."""
        self.network()
        return self.model.encode(prompts)

    def predict(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the model."""
        self.network()
        eps = self.model.predict(*args, **kwargs)
        self.split.evaluations += len(eps)
        return eps

    @property
    def phi(self) -> Callable[..., Tensor] | None:
        """As the model's, counted as `predict` is."""
        phi = getattr(self.model, "phi", None)

        def predict(*args: Any, **kwargs: Any) -> Tensor:
            self.network()
            eps = phi(*args, **kwargs)
            self.split.evaluations += len(eps)
            return eps

        return None if phi is None else predict

    def decode(self, x0: Tensor) -> Any:
        """As the model."""
        self.split.enter("reward")
        return self.model.decode(x0)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """As the model."""
        before, self.referring = self.referring, True
        try:
            with self.model.reference():
                yield
        finally:
            self.referring = before
