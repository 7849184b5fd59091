"""One update after the other: the only place that runs losses backwards and steps the optimiser.

A method yields losses; this file turns them into updates of `model.adapter`, the same ones whether the samples of an
update come in one batch, in several rollouts or in several processes.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from align3d.log import TERM
from align3d.prompt_pool import draw, quoted
from align3d.reward_memory import BEFORE, measure
from align3d.rng import Streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from align3d.state import State
    from align3d.timing import Split
    from align3d.types import BaseModel, Method, Score, StepLoss, Subject

PREPARE_ROWS = 8  # samples that `prepare` sees, at most: all processes hold all of them


@dataclass(frozen=True)
class Loop:
    """How long and how fast to train, and how often to save."""

    updates: int = 60  # rounds of sampling and learning, at most
    minutes: float = 0.0  # of updates, looks and pictures left out, after which the run ends early; 0 = no limit
    batch_size: int = 8  # samples per rollout and process
    batch_later: tuple[tuple[int, int], ...] = ()  # UPDATE SIZE, in order: the batch_size from that update on
    group: int = 1  # samples of a batch that share a prompt; ddpo compares them, and needs 2 or more
    accumulate: int = 1  # rollouts per update; 2 of batch 4 give the update of one of batch 8, in half the memory
    learning_rate: float = 3e-3  # of AdamW, after the warm-up
    betas: tuple[float, float] = (0.9, 0.999)  # decay of AdamW's two running means, per optimiser step
    eps: float = 1e-8  # of AdamW: added to the root of the second mean
    weight_decay: float = 1e-4  # of AdamW: pull of the adapter towards zero, per step and unit of learning rate
    warmup: int = 5  # updates during which the learning rate rises from 1 / warmup of its value; 0 = none
    max_grad_norm: float = 1.0  # L2 norm to which the adapter's gradient is clipped; 0 = no clipping
    ema: float = 0.0  # decay per optimiser step of a running mean of the adapter, saved in adapter-ema/; 0 = none
    checkpoint_every: int = 10  # updates between checkpoints
    keep: int = 2  # newest checkpoints that stay on disk; 0 = all
    sample_every: int = 0  # updates between sample pictures; 0 = only before the first update and after the last
    seed: int = 0  # of everything random; same seed, same machine: same bits

    def __post_init__(self) -> None:
        """Check every field that has limits."""
        least = dict.fromkeys(("updates", "batch_size", "group", "accumulate", "checkpoint_every"), 1)
        least |= dict.fromkeys(("minutes", "warmup", "keep", "sample_every", "weight_decay", "max_grad_norm", "ema"), 0)
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"loop.{name} must be at least {low} and finite, got {getattr(self, name)}")
        later = [(0, self.batch_size), *self.batch_later]
        if not all(a < b for (a, _), (b, _) in pairwise(later)) or min(size for _, size in later) < 1:
            raise ValueError(
                f"loop.batch_later must be updates in order, each with a size of 1 or more, got {self.batch_later}"
            )
        for _, size in later:
            if size % self.group:
                raise ValueError(f"loop.batch_size must be a multiple of loop.group, got {size} and {self.group}")
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"loop.{name} must be above 0 and finite, got {getattr(self, name)}")
        for name, decay in (("ema", self.ema), *(("betas", beta) for beta in self.betas)):
            if not 0 <= decay < 1:
                raise ValueError(f"loop.{name} must be in [0, 1), got {decay}")

    def size(self, update: int) -> int:
        """Samples per rollout and process in an update, counted from 0."""
        return [self.batch_size, *(size for start, size in self.batch_later if update >= start)][-1]

    def spent(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the updates of some rows have taken the time that there is."""
        return 0 < 60 * self.minutes <= sum(row["seconds"] for row in rows)

    def ramp(self, update: int) -> float:
        """The share of the learning rates in an update, counted from 0."""
        return min(1.0, (update + 1) / max(1, self.warmup))


@dataclass(frozen=True)
class Trainer:
    """What stays the same from update to update, and the state that does not.

    Before the first update it has to be `prepared`, or `resumed` from what that found.
    """

    model: BaseModel | Subject
    method: Method
    score: Score
    prompts: Sequence[str]
    loop: Loop
    times: Tensor
    state: State
    split: Split
    warned: set[str] = field(default_factory=set)  # of what, so that it is said once

    @classmethod
    def start(
        cls, model: BaseModel | Subject, method: Method, score: Score, prompts: Sequence[str], loop: Loop
    ) -> Trainer:
        """Everything as it is before the first update."""
        import torch

        from align3d import distributed
        from align3d.diffusion.sampler import sampling_times
        from align3d.state import State
        from align3d.timing import Split

        if hasattr(getattr(score, "reward", None), "restore"):
            score.reward.restore({})  # what another run has left in it
        trainable = {name: p for name, p in model.adapter.named_parameters() if p.requires_grad}
        distributed.broadcast(trainable.values())
        times = sampling_times(model)
        adam = torch.optim.AdamW(
            grouped(model, method, trainable, loop), betas=loop.betas, eps=loop.eps, weight_decay=loop.weight_decay
        )
        ema = {name: p.detach().clone() for name, p in trainable.items()} if loop.ema else {}
        state = State(trainable, adam, ema, growing=getattr(model, "growing", {}))
        return cls(model, method, score, prompts, loop, times, state, Split(times))

    def prepared(self) -> Trainer:
        """The same with the reward measured and the method's own preparations made; both count for the first update."""
        from align3d import distributed
        from align3d.timing import TimedModel

        measured = self.memory is not None and self.memory.scales and hasattr(self.model, "decode")
        if not measured and not hasattr(self.method, "prepare"):
            return self
        begun, method = time.perf_counter(), self.method
        if measured:
            score = self.split.score(self.score)
            measure(self.memory, TimedModel(self.model, self.split), score, self.times, self.prompts, self.loop.seed)
            self.state.reward.update(self.memory.numbers)
        if hasattr(method, "prepare"):
            # All processes see the same rows, which are the first of the batch of one process: same result everywhere.
            group, all_rows = self.loop.group, self.loop.batch_size * self.loop.accumulate * distributed.world()
            size = max(group, min(PREPARE_ROWS, all_rows) // group * group)
            rng = Streams.batch(self.loop.seed, BEFORE, 0, size, group)
            model, score = TimedModel(self.model, self.split), self.split.score(self.score)
            method = method.prepare(model, score, self.times, draw(self.prompts, rng), rng)
            method = distributed.agree(method, self.times)
            self.state.prepared.update(changed(self.method, method))
        if self.memory is not None:
            self.memory.advance({})  # forgets what `prepare` has seen, which all processes have
        spent = self.split.take()
        self.state.before.update({"seconds": time.perf_counter() - begun} | spent)
        return replace(self, method=method)

    @property
    def memory(self) -> Any:
        """The reward, if it goes by what the run has seen so far, as rewards.combined does; else None."""
        reward = getattr(self.score, "reward", None)
        return reward if hasattr(reward, "advance") else None

    def resumed(self) -> Trainer:
        """The same as it was before the first update of the run, and its reward as after the last, from the state."""
        if self.memory is not None:
            self.memory.restore(self.state.reward)
        return replace(self, method=replace(self.method, **self.state.prepared)) if self.state.prepared else self

    def settle(self) -> dict[str, float]:
        """Let the reward take over what all processes have seen in an update; the means of its terms."""
        from align3d import distributed

        if self.memory is None:
            return {}
        means = self.memory.advance(distributed.average_numbers(self.memory.seen()))
        self.state.reward.update(self.memory.numbers)
        return {f"{TERM}{name}": mean for name, mean in means.items()}

    def refine(self, update: int) -> None:
        """Let a scene become more and fewer parts before an update, all processes alike; after the last, none does."""
        if update and hasattr(self.model, "refine"):
            rng = Streams.batch(self.loop.seed, update, 0, 0)
            self.state.follow(self.model.refine(rng, self.loop.ramp(update)))

    def update(self, update: int) -> dict[str, Any]:
        """As `learn`; if something in it is not finite, the error says in which update."""
        from align3d.diffusion.sampler import NonFiniteError

        try:
            return self.learn(update)
        except NonFiniteError as error:
            raise NonFiniteError(f"update {update + 1}: {error}") from error

    def learn(self, update: int) -> dict[str, Any]:
        """Sample, learn, and say how it went.

        Args:
            update: Counted from 0. With the seed, it determines every random choice.

        Returns:
            A row of numbers, and of lists with an entry for each sample; "step" counts from 1.
        """
        from align3d import distributed, log

        begun = time.perf_counter()
        for group in self.state.optimizer.param_groups:
            group["lr"] = group["rate"] * self.loop.ramp(update)
        self.state.optimizer.zero_grad(set_to_none=True)
        self.refine(update)
        rollouts = [self.rollout(update, part) for part in range(self.loop.accumulate)]
        seen: dict[str, list[float]] = defaultdict(list)
        lists: dict[str, list[Any]] = defaultdict(list)
        losses, norms = 0.0, []
        while rollouts:  # each goes on until it wants a step, so that none runs ahead on an older adapter
            parts = [self.backward(update, *rollout, seen, lists) for rollout in rollouts]
            rollouts = [rollout for rollout, loss in zip(rollouts, parts, strict=True) if loss is not None]
            if rollouts:
                losses += sum(loss for loss in parts if loss is not None)
                norms.append(self.step(update, rollouts))
        if not norms:
            raise ValueError(
                f"method {type(self.method).__name__} gave no loss with update=True in update {update + 1}"
            )
        means = {name: distributed.TOTALS.get(name, distributed.mean)(values) for name, values in seen.items()}
        numbers = means | self.settle()
        if hasattr(self.model, "tally"):
            numbers |= self.model.tally(distributed.average)
        spent = self.split.take()  # waits for a GPU, so before the clock is read
        first = {"seconds": time.perf_counter() - begun} | spent
        if update == 0:
            for name, value in self.state.before.items():
                if distributed.rank() == 0 or name != "evaluations":  # all processes did the same
                    first[name] += value
            self.state.before.clear()
        last = {"loss": losses / len(norms), "grad_norm": sum(norms) / len(norms)}
        last |= {"memory_mib": log.peak_memory(self.times), "lr": self.loop.learning_rate * self.loop.ramp(update)}
        taken = (numbers.keys() | lists.keys()) & {"step", *first, *last}
        if taken:
            name = type(self.method).__name__
            raise ValueError(f"method {name} has a metric {min(taken)!r}, which is the loop's own; rename it")
        return {"step": update + 1} | distributed.average_numbers(first | numbers | last) | distributed.joined(lists)

    def rollout(self, update: int, part: int) -> tuple[list[str], Iterator[StepLoss]]:
        """The prompts and the losses, still to come, of one batch of an update."""
        from align3d import distributed
        from align3d.timing import TimedModel

        batch, size = part * distributed.world() + distributed.rank(), self.loop.size(update)
        rng = Streams.batch(self.loop.seed, update, batch * size, size, self.loop.group)
        prompts = draw(self.prompts, rng)
        model, score = TimedModel(self.model, self.split), self.split.score(self.score)
        return prompts, iter(self.method.losses(model, score, self.times, prompts, rng))

    def backward(
        self,
        update: int,
        prompts: list[str],
        losses: Iterator[StepLoss],
        seen: dict[str, list[float]],
        lists: dict[str, list[Any]],
    ) -> float | None:
        """Run losses backwards until the method wants a step.

        Returns:
            The sum of those losses, with its weight in the update; None if the rollout is at its end.
        """
        total = None
        for step in losses:
            loss = float(step.loss.detach())
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss} in update {update + 1}, with {quoted(prompts)}")
            self.warn_of_dead(update, step.dead, len(prompts))
            self.split.enter("adapter")
            (step.loss / self.loop.accumulate).backward()
            self.split.enter(None)
            total = (total or 0.0) + loss / self.loop.accumulate
            for name, value in step.metrics.items():
                seen[name].append(float(value))
            for name, entries in step.lists.items():
                lists[name].extend(entries)
            wanted = step.update
            del step  # its graph has to go before the method builds the next one
            if wanted:
                return total
        if total is not None:
            raise ValueError(
                f"method {type(self.method).__name__} ended a rollout without update=True on its last loss"
            )
        return None

    def warn_of_dead(self, update: int, dead: Sequence[str], size: int) -> None:
        """Say, the first time that it happens, that some samples of a batch teach nothing."""
        if not dead or "dead" in self.warned:
            return
        self.warned.add("dead")
        print(
            f"align3d: warning: update {update + 1}: the reward has no gradient for {len(dead)} of {size} samples, "
            f"with {quoted(dead)}; it is saturated or clipped there, or does not see the object (said once)",
            file=sys.stderr,
        )

    def step(self, update: int, rollouts: list[tuple[list[str], Iterator[StepLoss]]]) -> float:
        """Average the gradients over the processes, clip, step; returns their norm before clipping."""
        import torch

        from align3d import distributed

        parameters = list(self.state.trainable.values())
        distributed.average_gradients(parameters)
        if all(p.grad is None for p in parameters):
            raise ValueError(
                f"no gradient reached the adapter in update {update + 1}; its model must use it in predict"
            )
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.loop.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            prompts = [prompt for batch, _ in rollouts for prompt in batch]
            raise FloatingPointError(f"a gradient became {norm} in update {update + 1}, with {quoted(prompts)}")
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)
        for name, mean in self.state.ema.items():
            mean.lerp_(self.state.trainable[name].detach(), 1 - self.loop.ema)
        return norm

    def save(self, out: Path, done: int) -> None:
        """Write a checkpoint and the adapter."""
        from align3d import checkpoint

        checkpoint.save(out, done, self.state, self.loop.keep)
        self.export(out)

    def export(self, out: Path) -> None:
        """Write the adapter, and its running mean if there is one, as the model saves them (if it does)."""
        import torch

        from align3d.files import replacing_files

        if not hasattr(self.model, "save_adapter"):
            return
        with replacing_files(out / "adapter") as folder:
            self.model.save_adapter(folder)
        if self.state.ema:
            now = {name: p.detach().clone() for name, p in self.state.trainable.items()}
            with torch.no_grad():
                for name, p in self.state.trainable.items():
                    p.copy_(self.state.ema[name])
                try:
                    with replacing_files(out / "adapter-ema") as folder:
                        self.model.save_adapter(folder)
                finally:
                    for name, p in self.state.trainable.items():
                        p.copy_(now[name])


def grouped(
    model: BaseModel | Subject, method: Method, trainable: Mapping[str, Any], loop: Loop
) -> list[dict[str, Any]]:
    """The parameters in groups for the optimiser: those that model or method have options for, and the others.

    A name in `groups()` stands for the parameter of that name and for all below it: "phi" for "phi.down.weight". Where
    several fit, the longest counts; what the method says goes before what the model says.

    Raises:
        ValueError: If one has options for something that does not train.
    """
    own: dict[str, dict[str, Any]] = {}
    for part in (model, method):
        own |= part.groups() if hasattr(part, "groups") else {}
    found: dict[str, list[Any]] = defaultdict(list)
    for name, parameter in trainable.items():
        above = [key for key in own if f"{name}.".startswith(f"{key}.")]
        found[max(above, key=len, default="")].append(parameter)
    if own.keys() - found.keys():
        names = ", ".join(sorted(own.keys() - found.keys()))
        raise ValueError(
            f"{type(model).__name__} and {type(method).__name__} have options for {names}, and nothing that is called "
            f"so trains"
        )
    rates = {name: own.get(name, {}).get("lr", loop.learning_rate) for name in found}
    return [{**own.get(name, {}), "params": found[name], "lr": rate, "rate": rate} for name, rate in rates.items()]


def changed(before: Method, after: Method) -> dict[str, float]:
    """The options that `prepare` has set, by name.

    Raises:
        ValueError: If it set others than numbers, which a checkpoint could not hold.
    """
    if not is_dataclass(after) or type(after) is not type(before):
        kinds = f"a {type(before).__name__} and {type(after).__name__}"
        raise ValueError(f"`prepare` of a method must return the same dataclass with other numbers, got {kinds}")
    pairs = {field.name: (getattr(before, field.name), getattr(after, field.name)) for field in fields(after)}
    found = {name: new for name, (old, new) in pairs.items() if new is not old and new != old}
    bad = next((name for name, value in found.items() if type(value) not in (int, float)), None)
    if bad is not None:
        raise ValueError(f"`prepare` of {type(after).__name__} set {bad} to {found[bad]!r}; it may set numbers alone")
    return found
