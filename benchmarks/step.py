"""The plain schedule of Nabla-R2D3 against ours, in one run: trained transitions per second, and peak memory.

    python benchmarks/step.py [--updates 3] [--threads 2] [--reward colorfulness] [--batch-size 8] [--transitions 4]
                              [--schedules NAME ...] [--weights FOLDER] [--cpu-time]

Plain is what the public code does, on the same generator, reward, cameras and randomness, and with the same loss: it
samples, and then, for each trained transition in turn, predicts with the reference, with the adapter, and at the next
state, decodes, renders, judges, takes the reward's gradient back through that last prediction, and the loss's. It runs

    object by object        as there: batch 1, one backward pass per transition
    in one batch            all objects at once, one backward pass per transition
    in one batch, at once   all objects at once, the graphs of all transitions kept for one backward pass

As in ours, and unlike there, its last transition scores the sample itself: one pass of the network less. The network is
the same code for all. An update is sampling, all losses and their backward passes, without the optimiser's step.

Each schedule has a process of its own, and they take turns, update by update, so that a busy or throttled machine slows
all. The fastest update of each counts. Peak memory is the process's own (ru_maxrss), what it had with the model loaded
and one prediction made taken off in the second column.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote import Remote

from align3d.commands.demo import Demo

if TYPE_CHECKING:
    from torch import Tensor

    from align3d.methods.nabla import Nabla
    from align3d.rng import Streams
    from align3d.types import BaseModel, Score

PLAIN = {"plain, object by object": (1, False), "plain, one batch": (0, False), "plain, one batch, at once": (0, True)}
OURS = {  # name -> options of Nabla
    "default": {},
    "not merged": {"merge": False},
    "jacobian": {"jacobian": True},
    "chunk 0": {"chunk": 0},
    "chunk 0, not merged": {"chunk": 0, "merge": False},
    "x0": {"gradient_at": "x0", "chunk": 0},
    "x0, chunk 1": {"gradient_at": "x0", "chunk": 1},
    "scenes 0": {"scenes": 0},
    "scenes 2": {"scenes": 2},
    "x0, scenes 2": {"gradient_at": "x0", "chunk": 0, "scenes": 2},
}


@dataclass(frozen=True)
class Setup:
    """One schedule to measure."""

    schedule: str = "default"
    options: dict[str, Any] = field(default_factory=dict)  # of Nabla, whatever the schedule
    reward: str = Demo.reward
    batch_size: int = 8
    threads: int = 2
    precision: str = "auto"
    weights: Path | None = None
    cpu_time: bool = False  # time of the processor, summed over threads, instead of the wall clock's


def plain(
    model: BaseModel, method: Nabla, score: Score, times: Tensor, prompts: Sequence[str], rng: Streams, at_once: bool
) -> Iterator[Tensor]:
    """Losses of one rollout by the plain schedule: those of `method.losses` with jacobian, transition by transition."""
    import torch

    from align3d.diffusion.sampler import rollout

    with torch.no_grad():
        traj = rollout(model, prompts, times, rng, method.eta)
    chosen = method.choose(len(traj), rng, "transitions0")
    total = torch.zeros(())
    for copy, j in enumerate(chosen):
        t, s = times[j].expand(len(prompts)), times[j + 1].expand(len(prompts))
        states = traj.x[:, j], traj.x[:, j + 1], t, s
        losses = transition(model, method, score, prompts, *states, rng.repeat(1, first=copy), j + 1 < len(traj))
        loss = losses.sum() / (len(chosen) * len(prompts))
        if not at_once:
            yield loss
        total = total + loss
    if at_once:
        yield total


def transition(
    model: BaseModel,
    method: Nabla,
    score: Score,
    prompts: Sequence[str],
    x: Tensor,
    y: Tensor,
    t: Tensor,
    s: Tensor,
    rng: Streams,
    estimate: bool,
) -> Tensor:
    """The losses (B,) of transitions from x at time t to y at time s, by the plain schedule.

    `estimate` is whether the reward judges the data that y stands for, which takes a prediction there, or y itself.
    """
    import torch

    from align3d.diffusion.schedule import bcast, x0_from_eps
    from align3d.diffusion.transition import score_scale

    cond = model.encode(prompts)
    with model.reference():
        eps_ref = model.predict(x, t, cond)
    eps = model.predict(x, t, cond)
    y = x0 = y.detach().requires_grad_()
    if estimate:
        x0 = x0_from_eps(model.schedule, y, model.predict(y, s, cond), s)
    reward = score(model.decode(x0), prompts, rng)
    (grad,) = torch.autograd.grad(reward.sum(), y)
    g = method.beta * bcast(model.schedule.alpha(s) ** 2, grad) * grad  # alpha_bar
    k = bcast(score_scale(model.schedule, t, s, method.eta), eps)
    w = (k**2).clamp_max(method.weight_max)
    return (w * (eps - eps_ref + g / k) ** 2).flatten(1).mean(1)


class Bench:
    """The generator, and updates by one schedule."""

    def __init__(self, setup: Setup):
        import torch

        from align3d.commands.demo import prompt_lists, rewards
        from align3d.diffusion.sampler import sampling_times
        from align3d.methods.nabla import Nabla
        from align3d.models.embedded import Embedded
        from align3d.rewards.score import Scorer
        from align3d.scenes.cameras import CameraSampling

        torch.set_num_threads(setup.threads)
        self.setup = setup
        self.now = time.process_time if setup.cpu_time else time.perf_counter
        self.model = Embedded(weights=setup.weights, precision=setup.precision).load()
        self.times = sampling_times(self.model)
        reward = rewards(setup.reward)[setup.reward]
        self.score = Scorer(reward, CameraSampling())
        self.prompts = prompt_lists(setup.reward, {setup.reward: reward}, 1)[0][: setup.batch_size]
        self.method = Nabla(**{"beta": 100.0} | setup.options | OURS.get(setup.schedule, {"jacobian": True}))
        self.size = min(PLAIN[setup.schedule][0] or setup.batch_size, setup.batch_size) if self.plain else None
        self.done = 0

    @property
    def plain(self) -> bool:
        """Whether the schedule is the plain one."""
        return self.setup.schedule in PLAIN

    @property
    def facts(self) -> dict[str, float]:
        """Transitions that an update trains, and MiB before the first."""
        chosen = min(self.method.transitions, self.model.steps)
        return {"trained": chosen * len(self.prompts), "loaded": self.loaded()}

    def losses(self, update: int) -> Iterator[Tensor]:
        """The losses of an update, which add up to the same whatever the schedule."""
        from align3d.rng import Streams

        B = len(self.prompts)
        if not self.plain:
            rng = Streams.batch(0, update, 0, B)
            steps = self.method.losses(self.model, self.score, self.times, self.prompts, rng)
            yield from (step.loss for step in steps)
            return
        for i in range(0, B, self.size):
            prompts = self.prompts[i : i + self.size]
            rng = Streams.batch(0, update, i, len(prompts))
            args = self.model, self.method, self.score, self.times, prompts, rng
            for loss in plain(*args, at_once=PLAIN[self.setup.schedule][1]):
                yield loss * (len(prompts) / B)

    def gradient(self, update: int) -> Tensor:
        """The gradient of an update, flat."""
        import torch

        parameters = list(self.model.adapter.parameters())
        for p in parameters:
            p.grad = None
        for loss in self.losses(update):
            loss.backward()
        return torch.cat([p.grad.flatten() for p in parameters])

    def loaded(self) -> float:
        """MiB before the first update, with all that is loaded at first use."""
        import torch

        from align3d.log import peak_memory
        from align3d.rng import Streams

        rng = Streams.batch(0, 0, 0, 1)
        x = rng.normal("warm-up", tuple(self.model.latent_shape)).requires_grad_()
        self.model.predict(x, self.times[:1], self.model.encode(self.prompts[:1])).sum().backward()
        self.score(self.model.decode(x), self.prompts[:1], rng).sum().backward()
        return peak_memory(torch.zeros(()))

    def update(self) -> tuple[float, float]:
        """Seconds of the next update, and the peak memory so far in MiB."""
        import torch

        from align3d.log import peak_memory

        gc.collect()
        begun = self.now()
        self.gradient(self.done)
        self.done += 1
        return self.now() - begun, peak_memory(torch.zeros(()))


def measure(setup: Setup, schedules: Sequence[str], updates: int) -> None:
    """Prints a table of the schedules; ratios are to the first of them."""
    what = "processor" if setup.cpu_time else "wall-clock"
    print(
        f"{setup.reward}, batch {setup.batch_size}; threads: {setup.threads} on {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; {what} time, fastest of {updates} updates\n"
    )
    remotes = {name: Remote(Bench, setup_of(setup, name)) for name in schedules}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in remotes}
    for i in range(updates + 1):
        for name, remote in remotes.items():
            row = remote.update()
            rows[name] += [row] if i else []  # the first is a warm-up
    print("| schedule | ms a transition | transitions a second, times the first | peak MiB | of the update | ratio |")
    print("|---|--:|--:|--:|--:|--:|")
    first = None
    for name, remote in remotes.items():
        each = min(seconds for seconds, _ in rows[name]) / remote.facts["trained"]
        peak = max(memory for _, memory in rows[name])
        own = peak - remote.facts["loaded"]
        first = first or (each, own)
        ratios = f"{first[0] / each:.2f}", f"{own / first[1]:.2f}" if first[1] else "-"
        print(f"| {name} | {1e3 * each:.1f} | {ratios[0]} | {peak:.0f} | {own:.0f} | {ratios[1]} |", flush=True)
        remote.close()


def setup_of(setup: Setup, name: str) -> Setup:
    """The setup of a schedule by its name, in which "of N" at the end sets the number of transitions."""
    base, _, number = name.partition(" of ")
    options = setup.options | ({"transitions": int(number)} if number else {})
    if base not in PLAIN and base not in OURS:
        raise SystemExit(
            f"unknown schedule {base!r}; known: {', '.join([*PLAIN, *OURS])}, each with ' of N' or without"
        )
    return replace(setup, schedule=base, options=options)


def main(args: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3, help="updates to take the fastest of")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reward", default=Demo.reward)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--transitions", type=int, default=4, help="trained per rollout")
    parser.add_argument("--schedules", nargs="*", default=[*PLAIN, *OURS], help=", ".join([*PLAIN, *OURS]))
    parser.add_argument("--weights", type=Path, help="folder of a checkpoint; default: the shipped one")
    parser.add_argument("--cpu-time", action="store_true", help="processor instead of wall-clock time: busy machines")
    given = vars(parser.parse_args(args))
    updates, schedules, transitions = given.pop("updates"), given.pop("schedules"), given.pop("transitions")
    measure(Setup(options={"transitions": transitions}, **given), schedules, updates)


if __name__ == "__main__":
    main()
