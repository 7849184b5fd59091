"""Where the time of one Nabla update on the embedded generator goes, and what its options cost: time and memory.

    python benchmarks/update.py [--updates 5] [--threads 2] [--reward colorfulness] [--variants jacobian ...]
                                [--batch-size 8] [--weights FOLDER] [--cpu-time]

The real loop runs the real method; timers are put around what they call, and take nothing away from it. Every moment
counts for the innermost part that is running, so the parts add up to the update. Backward passes are split where the
gradient passes from one part to the next. Of several updates the fastest is shown; the first is a warm-up.

A variant differs from the default in one option. It runs in a process of its own, update by update in turns with the
default, so that a busy or throttled machine slows both. Peak memory is that of the process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

from remote import Remote

from align3d.commands.demo import Demo

GROUPS = {  # what the tables sum up -> the parts of it, in the order in which they run
    "sampling": ("sampling",),
    "reward gradient": (
        "decode",
        "render",
        "judge",
        "judge, backward",
        "render, backward",
        "decode, backward",
        "network",  # with jacobian only; its backward pass counts for the decoder's
        "cameras, estimates",
    ),
    "reference": ("reference",),
    "adapter": ("adapter, forward", "adapter, backward"),
    "rest": ("rest",),
}
VARIANTS = {  # name -> fields of Setup; the precision that the machine does not choose is put in by `variants`
    "jacobian": {"jacobian": True},
    "not merged": {"merge": False},
    "chunk 0": {"chunk": 0},
    "x0": {"gradient_at": "x0", "chunk": 0},
    "8 transitions": {"transitions": 8},
}


@dataclass(frozen=True)
class Setup:
    """One configuration to measure."""

    reward: str
    precision: str = "auto"
    transitions: int = 4
    gradient_at: str = "estimate"
    jacobian: bool = False
    chunk: int = 1
    merge: bool = True
    beta: float | None = None  # None measures it before the first update, as training does
    batch_size: int = 8
    threads: int = 2
    weights: Path | None = None
    cpu_time: bool = False  # time of the processor, summed over threads, instead of the wall clock's


class Clock:
    """Seconds by part: every moment counts for the innermost part that is open."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.mark = now, 0.0
        self.open: list[str] = []
        self.spent: dict[str, float] = defaultdict(float)

    def turn(self) -> None:
        """Book the time since the last turn."""
        now = self.now()
        if self.open:
            self.spent[self.open[-1]] += now - self.mark
        self.mark = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, time counts for `name`, except where another part opens."""
        self.turn()
        self.open.append(name)
        try:
            yield
        finally:
            self.turn()
            self.open.pop()

    def rename(self, name: str) -> None:
        """From now on the innermost open part is `name`."""
        self.turn()
        self.open[-1] = name

    def timed(self, function: Callable[..., Any], name: str | dict[str, str]) -> Callable[..., Any]:
        """The function as a part; with a dict, as the part that it is within the open one, if that is a key."""

        def run(*args: Any, **kwargs: Any) -> Any:
            inner = name if isinstance(name, str) else name.get(self.open[-1]) if self.open else None
            if inner is None:
                return function(*args, **kwargs)
            with self.part(inner):
                return function(*args, **kwargs)

        return run

    def take(self) -> dict[str, float]:
        """What was booked since the last call."""
        spent, self.spent = dict(self.spent), defaultdict(float)
        return spent


class Bench:
    """A training run with timers around its parts."""

    def __init__(self, setup: Setup):
        import torch

        from align3d.commands.demo import prompt_lists, rewards
        from align3d.log import peak_memory
        from align3d.loop import Loop
        from align3d.methods.nabla import Nabla
        from align3d.models.embedded import Embedded
        from align3d.rewards.score import Scorer
        from align3d.scenes.cameras import CameraSampling
        from align3d.trainer import Trainer

        torch.set_num_threads(setup.threads)
        self.clock = Clock(time.process_time if setup.cpu_time else time.perf_counter)
        self.model = Embedded(weights=setup.weights, precision=setup.precision).load()
        self.loaded = peak_memory(torch.zeros(()))  # MiB
        reward = rewards(setup.reward)[setup.reward]
        prompts, _ = prompt_lists(setup.reward, {setup.reward: reward}, 1)
        options = {f.name: getattr(setup, f.name) for f in fields(Nabla) if hasattr(setup, f.name)}
        method = Nabla(**options)
        with self.clock.part("calibration"):
            score = Scorer(reward, CameraSampling())
            self.run = Trainer.start(self.model, method, score, prompts, Loop(batch_size=setup.batch_size)).prepared()
        self.calibration = self.clock.take()["calibration"]
        self.done = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What is known before the first update; times in seconds, memory in MiB."""
        precision = "float32" if self.model.precision is None else str(self.model.precision).removeprefix("torch.")
        method = self.run.method
        return {
            "precision": precision,
            "beta": method.beta,
            "calibration": self.calibration,
            "loaded": self.loaded,
            "transitions": method.transitions,
            "steps": self.model.steps,
            "cameras": self.run.score.cameras,
        }

    def update(self) -> dict[str, float]:
        """Seconds by part of the next update, and the peak memory so far under "memory", in MiB."""
        with ExitStack() as stack:
            for target, name, value in self.timers():
                stack.enter_context(mock.patch.object(target, name, value))
            with self.clock.part("rest"):
                row = self.run.update(self.done)
        self.done += 1
        return self.clock.take() | {"memory": row["memory_mib"]}

    def timers(self) -> list[tuple[Any, str, Any]]:
        """What to put in the place of what: object, attribute, timed attribute."""
        import torch

        from align3d.methods.nabla import Nabla
        from align3d.methods.transitions import Chain
        from align3d.scenes.gaussians import Gaussians

        model, timed = self.model, self.clock.timed
        reward = type(self.run.score.reward)
        # sampling and reference have parts of their own, in which the network is not set apart
        network = {"rest": "adapter, forward", "cameras, estimates": "network"}
        return [
            (Chain, "sample", timed(Chain.sample, "sampling")),
            (Nabla, "reward_gradient", timed(Nabla.reward_gradient, "cameras, estimates")),
            (model, "encode", timed(model.encode, network)),
            (model, "predict", self.predict(timed(model.predict, network))),
            (model, "decode", timed(model.decode, "decode")),
            (model, "reference", self.reference(model.reference)),
            (Gaussians, "render", self.render(Gaussians.render)),
            (reward, "__call__", timed(reward.__call__, "judge")),
            (torch.autograd, "grad", timed(torch.autograd.grad, {"cameras, estimates": "judge, backward"})),
            (torch.Tensor, "backward", timed(torch.Tensor.backward, {"rest": "adapter, backward"})),
        ]

    def predict(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The model's, or a part of its own where the sampler predicts with a graph, to train on."""
        import torch

        trained = self.clock.timed(original, {"sampling": "adapter, forward"})
        return lambda *args: (trained if torch.is_grad_enabled() else original)(*args)

    def reference(self, original: Callable[[], Any]) -> Callable[[], Any]:
        """A timed context in the place of the model's."""

        @contextmanager
        def run() -> Iterator[None]:
            with self.clock.part("reference"), original():
                yield

        return run

    def render(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Gaussians.render, as a part, with hooks that tell when a gradient enters and leaves it."""
        from align3d.types import CHANNELS

        def watch(tensor: Any, name: str) -> None:
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(lambda _: self.clock.rename(name))

        def run(scene: Any, *args: Any, **kwargs: Any) -> Any:
            with self.clock.part("render"):
                views = original(scene, *args, **kwargs)
            for tensor in scene.tensors:
                watch(tensor, "decode, backward")
            for name in CHANNELS:
                watch(getattr(views, name), "render, backward")
            return views

        return run


def seconds(row: dict[str, float], group: str | None = None) -> float:
    """The time of a group of parts, or of the whole update."""
    return sum(row.get(part, 0.0) for name in ([group] if group else GROUPS) for part in GROUPS[name])


def fastest(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The update that took least, with the peak memory of all."""
    return min(rows, key=seconds) | {"memory": max(row["memory"] for row in rows)}


def split_table(row: dict[str, float]) -> list[str]:
    """One update, part by part, as a table in Markdown."""
    total, lines = seconds(row), ["| part | ms | share |", "|---|--:|--:|"]

    def line(name: str, value: float) -> str:
        return f"| {name} | {1e3 * value:.0f} | {100 * value / total:.1f} % |"

    for group, parts in GROUPS.items():
        lines.append(line(group, seconds(row, group)))
        used = [part for part in parts if row.get(part)]
        lines += [line(f"&nbsp; {part}", row[part]) for part in used] if len(parts) > 1 else []
    return [*lines, line("**one update**", total)]


def variant_line(name: str, base: dict[str, float], row: dict[str, float]) -> str:
    """A variant's fastest update over the default's: time, each group's time, peak memory."""

    def ratio(mine: float, other: float) -> str:
        return f"{mine / other:.2f}" if other else "-"

    cells = [name, f"{1e3 * seconds(row):.0f}", ratio(seconds(row), seconds(base))]
    cells += [ratio(seconds(row, group), seconds(base, group)) for group in GROUPS]
    cells += [f"{row['memory']:.0f}", ratio(row["memory"], base["memory"])]
    return f"| {' | '.join(cells)} |"


def variants(setup: Setup, precision: str, names: Sequence[str]) -> dict[str, Setup]:
    """Setups that differ from the default, by name: those of VARIANTS, the other precision, and rewards."""
    other = "float32" if precision == "bfloat16" else "bfloat16"
    known = {other: {"precision": other}, precision: {"precision": precision}} | VARIANTS
    wanted = names or [other, *VARIANTS]
    return {name: replace(setup, **known.get(name, {"reward": name})) for name in wanted}


def measure(setup: Setup, updates: int, names: Sequence[str]) -> None:
    """Prints the default's table, then the variants'."""
    base = Remote(Bench, setup)
    facts, cameras = base.facts, base.facts["cameras"]
    what = "processor" if setup.cpu_time else "wall-clock"
    print(
        f"{setup.reward}, batch {setup.batch_size}, {facts['transitions']} transitions, {facts['steps']} steps, "
        f"{cameras.views} cameras at {cameras.size} pixels, {facts['precision']}; threads: {setup.threads} on "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {what} time, fastest of {updates} updates\n"
    )
    warm_up = base.update()
    row = fastest([base.update() for _ in range(updates)])
    print("\n".join(split_table(row)))
    print(
        f"\nPeak memory {row['memory']:.0f} MiB, {facts['loaded']:.0f} of it with the model loaded. Before the first "
        f"update, beta: {facts['calibration'] / seconds(row):.1f} updates. Warm-up: "
        f"{seconds(warm_up) / seconds(row):.2f} updates.\n"
    )
    print(f"| variant | ms | times default | {' | '.join(GROUPS)} | peak MiB | times default |")
    print("|---|--:|--:|" + "--:|" * len(GROUPS) + "--:|--:|")
    print(variant_line("default", row, row), flush=True)
    for name, other in variants(replace(setup, beta=1.0), facts["precision"], names).items():
        remote = Remote(Bench, other)
        remote.update()
        pairs = [(base.update(), remote.update()) for _ in range(updates)]
        remote.close()
        ours, theirs = zip(*pairs, strict=True)
        print(variant_line(name, fastest(ours), fastest(theirs)), flush=True)
    base.close()


def main(args: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=5, help="updates to take the fastest of")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reward", default=Demo.reward, help="reward of the default")
    parser.add_argument("--variants", nargs="*", default=[], help=f"float32, bfloat16, {', '.join(VARIANTS)}, rewards")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--weights", type=Path, help="folder of a checkpoint; default: the shipped one")
    parser.add_argument("--cpu-time", action="store_true", help="processor instead of wall-clock time: busy machines")
    given = vars(parser.parse_args(args))
    updates, names = given.pop("updates"), given.pop("variants")
    measure(Setup(**given), updates, names)


if __name__ == "__main__":
    main()
