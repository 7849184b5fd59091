"""A published generator at full size on a GPU: seconds per trained transition, and peak memory, beside the public code.

    python benchmarks/gpu_step.py [--variant pas|sd15|sd35m|cube] [--batch-sizes 1 2 4 8] [--gradient-at estimate x0]
                                  [--transitions 8] [--recompute] [--decoder full|tiny] [--out FILE.json]

No weights are needed: the networks have their published sizes and random numbers (full_size.py), the denoiser in
bfloat16, its adapter, on all layers that the public code adapts, in float32, GS-VAE and reward in float32, no autocast.
The reward costs what the aesthetic one does and sees 4 views of 256 pixels. Of GaussianCube (cube) 20 of 50 transitions
are trained and attention alone is adapted, as in its recipes.

An update samples and trains the same number of objects, `--objects`, in every row, `--transitions` of each, all by the
same random streams, and steps the optimiser once. Rows:

    public        the schedule of Nabla-R2D3's public code, which is for DiffSplat alone. It samples 4 objects at a time
                  (--sampled), without gradient. Then, for one object after the other and one transition after the
                  other: prediction of the reference; prediction of the tuned model, with graph; prediction at the next
                  state, with graph; decoding, rendering, judging; the reward's gradient back through all that; the
                  loss's backward pass.
    estimate      ours, `align3d train --method.gradient-at estimate`, B objects at a time: predictions of the sampler
                  serve as those of the tuned model and of the next state, which is taken as a constant
    jacobian      the same, but the reward's gradient goes through the network as in the public code: that, exactly
    x0            ours with one reward gradient for each object, at the sample

Not counted against the public schedule, which runs the same networks and kernels as ours does: text padding (300 tokens
at any length), texts encoded for each view, views decoded and rendered one by one, normals that no reward reads, the
rendering of samples for its log, synchronisation at each transition.

Columns: seconds of an update per trained transition, sampling included; the same without the passes of the network that
only sample (where the sampler's predictions are trained on they count as training); transitions per second, times
`public`, of both; peak memory that torch allocated, in GiB, weights included (on the CPU: of the process, so far). The
goal is 4 times the transitions per second, and a batch of 4 within 24 GiB.

Rows take turns, update by update, after one update of each that is not counted; the fastest counts. A row that runs
out of memory says so, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from full_size import MODELS, Judge, generator
from step import transition

if TYPE_CHECKING:
    from torch import Tensor

    from align3d.methods.nabla import Nabla
    from align3d.rng import Streams
    from align3d.types import BaseModel, Score

GOAL_SPEED, GOAL_GIB, GOAL_BATCH = 4.0, 24.0, 4
KINDS = {  # our rows -> options of Nabla
    "estimate": {},
    "jacobian": {"jacobian": True},
    "x0": {"gradient_at": "x0"},
}
PUBLIC = "public"
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # in errors of libraries below torch
CUBE = {"steps": 50, "transitions": 20}  # of GaussianCube's recipes
PIXELS = (256, 16)  # side of a view, of generators that do not say it: at full size, tiny
BETA = 100.0  # so that it is not measured: how strong the reward is does not change the work


@dataclass(frozen=True)
class Setup:
    """What all rows have in common."""

    variant: str = "pas"
    size: str = "full"
    device: str = "cuda"
    precision: str = "bfloat16"
    reward: str = "judge"
    decoder: str = "full"
    recompute: bool = False
    decode_rows: int = 4
    steps: int = 20
    transitions: int = 8
    objects: int = 8
    sampled: int = 4
    scenes: int = 1
    chunk: int = 1
    tf32: bool = False


@dataclass
class Row:
    """A schedule, and what was measured of it."""

    kind: str
    batch: int
    seconds: list[float] = field(default_factory=list)  # of updates
    training: list[float] = field(default_factory=list)  # of these, without sampling
    gib: float = 0.0
    failed: str = ""


def public(
    model: BaseModel,
    method: Nabla,
    score: Score,
    times: Tensor,
    prompts: Sequence[str],
    rng: Streams,
    last: bool = True,
) -> Iterator[Tensor]:
    """Losses of one batch by the public code's schedule, object by object; they add up to those of `method.losses`.

    As there, the last transition is judged by an estimate too, if `last`; ours judges the sample itself.
    """
    import torch

    from align3d.diffusion.sampler import rollout

    with torch.no_grad():
        traj = rollout(model, prompts, times, rng, method.eta)
    chosen = method.choose(len(traj), rng, "transitions0")
    for b in range(len(prompts)):
        alone = replace(rng, keys=rng.keys[b : b + 1])
        for copy, j in enumerate(chosen):
            x, y, t, s = traj.x[b : b + 1, j], traj.x[b : b + 1, j + 1], times[j : j + 1], times[j + 1 : j + 2]
            streams, estimate = alone.repeat(1, first=copy), last or j + 1 < len(traj)
            loss = transition(model, method, score, prompts[b : b + 1], x, y, t, s, streams, estimate)
            yield loss.sum() / (len(chosen) * len(prompts))


class Bench:
    """The generator on its device, and updates by any schedule."""

    def __init__(self, setup: Setup):
        import torch

        from align3d.commands.flags import load_part
        from align3d.diffusion.sampler import sampling_times
        from align3d.rewards.score import Scorer
        from align3d.scenes.cameras import CameraSampling
        from align3d.timing import Split

        self.setup, self.tiny = setup, setup.size == "tiny"
        torch.backends.cuda.matmul.allow_tf32 = setup.tf32
        known = {f.name for f in fields(MODELS[setup.variant])}
        options = {n: getattr(setup, n) for n in ("decoder", "recompute", "decode_rows", "steps") if n in known}
        options["layers"] = "attention" if setup.variant == "cube" else "all"
        self.model = generator(setup.variant, setup.device, getattr(torch, setup.precision), self.tiny, **options)
        self.times = sampling_times(self.model)
        tuned = Judge.make(setup.device, self.tiny) if setup.reward == "judge" else load_part("reward", setup.reward)()
        pixels = self.model.cameras.height if hasattr(self.model, "cameras") else PIXELS[self.tiny]
        self.score = Scorer(tuned, CameraSampling(4, pixels, azimuth_jitter=10.0, elevation=10.0, elevation_jitter=5.0))
        self.prompts = [f"the caption of object {i}" for i in range(setup.objects)]
        self.parameters = list(self.model.adapter.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)
        self.split = Split(self.times)
        self.loaded = self.peak()

    def method(self, kind: str) -> Nabla:
        """Nabla as a row has it."""
        from align3d.methods.nabla import Nabla

        own = {"transitions": self.setup.transitions, "scenes": self.setup.scenes, "chunk": self.setup.chunk}
        return Nabla(beta=BETA, **own, **KINDS.get(kind, {"jacobian": True}))

    def losses(self, kind: str, batch: int, update: int, last: bool = True) -> Iterator[Tensor]:
        """The losses of an update, which add up to the mean over its objects and transitions."""
        from align3d.rng import Streams
        from align3d.timing import TimedModel

        objects, method = self.setup.objects, self.method(kind)
        model, score = TimedModel(self.model, self.split), self.split.score(self.score)
        for i in range(0, objects, batch):
            prompts = self.prompts[i : i + batch]
            args = model, score, self.times, prompts, Streams.batch(0, update, i, len(prompts))
            if kind == PUBLIC:
                found = public(args[0], method, *args[1:], last=last)
            else:
                found = (step.loss for step in method.losses(*args))
            for loss in found:
                yield loss * (len(prompts) / objects)

    def gradient(self, kind: str, batch: int, update: int, last: bool = True) -> None:
        """Leave the gradient of an update in the adapter."""
        for parameter in self.parameters:
            parameter.grad = None
        for loss in self.losses(kind, batch, update, last):
            self.split.enter("adapter")
            loss.backward()
            del loss  # its graph has to go before the next is built

    def measure(self, row: Row, update: int, counts: bool) -> None:
        """One update of a row; what it took is written into it, if it counts."""
        import torch

        expected = (torch.OutOfMemoryError, MemoryError, FloatingPointError)
        try:
            if self.times.is_cuda:
                gc.collect()
                torch.cuda.reset_peak_memory_stats(self.times.device)
            self.split.take()
            begun = self.now()
            self.gradient(row.kind, self.setup.sampled if row.kind == PUBLIC else row.batch, update)
            self.optimizer.step()
            whole, spent = self.now() - begun, self.split.take()
        except (RuntimeError, MemoryError, FloatingPointError) as error:
            if not isinstance(error, expected) and not any(word in str(error) for word in NO_MEMORY):
                raise
            row.failed = " ".join(str(error).split())[:200] or "out of memory"
        else:
            if counts:
                row.seconds.append(whole)
                row.training.append(whole - spent["seconds_sample"])
                row.gib = max(row.gib, self.peak())
            return
        for parameter in self.parameters:  # what the failed update left
            parameter.grad = None
        gc.collect()
        if self.times.is_cuda:
            torch.cuda.empty_cache()

    def now(self) -> float:
        """Seconds, when all that was asked of the GPU is done."""
        import torch

        if self.times.is_cuda:
            torch.cuda.synchronize(self.times.device)
        return time.perf_counter()

    def peak(self) -> float:
        """GiB."""
        from align3d.log import peak_memory

        return peak_memory(self.times) / 1024

    def facts(self) -> dict[str, Any]:
        """Where and with what it was measured."""
        import torch

        from align3d.scenes.raster import choose_backend

        cuda, weights = self.times.is_cuda, list(self.model.network.parameters())
        return {
            "device": torch.cuda.get_device_name(self.times.device) if cuda else platform.processor() or "cpu",
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "denoiser": str(next(p.dtype for p in weights if not p.requires_grad)).removeprefix("torch."),
            "adapter": str(self.parameters[0].dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in weights),
            "trained": sum(p.numel() for p in self.parameters),
            "rasteriser": choose_backend(self.times.device.type, tuple(self.score.reward.needs)),
            "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "conv": torch.backends.cudnn.allow_tf32},
            "loaded_gib": self.loaded,
            **asdict(self.setup),
        }


def summary(rows: Sequence[Row], each: int) -> list[dict[str, Any]]:
    """A record of each row; `each` is how many transitions an update trains. Ratios are None without `public`."""
    table = []
    first: dict[str, Any] | None = None
    for row in rows:
        record: dict[str, Any] = {"schedule": row.kind, "batch": row.batch, "failed": row.failed}
        if row.seconds and not row.failed:
            record |= {"seconds": min(row.seconds) / each, "training": min(row.training) / each, "gib": row.gib}
            first = record if row.kind == PUBLIC else first
            for name in ("seconds", "training"):
                record[f"times_{name}"] = first[name] / record[name] if first else None
        table.append(record)
    return table


def verdicts(table: Sequence[dict[str, Any]]) -> list[str]:
    """For each of our schedules whether it meets the goal."""
    said = []
    for kind in dict.fromkeys(r["schedule"] for r in table if r["schedule"] != PUBLIC):
        done = [r for r in table if r["schedule"] == kind and not r["failed"]]
        best = max(done, key=lambda r: r["times_seconds"] or 0.0, default=None)
        four = next((r for r in done if r["batch"] == GOAL_BATCH), None)
        ratio = (best or {}).get("times_seconds") or math.nan
        memory = four["gib"] if four else math.nan
        met = ratio >= GOAL_SPEED and memory <= GOAL_GIB
        speed = f"{ratio:.2f} times {PUBLIC} at batch {best['batch']}" if best else "no batch size ran"
        held = f"{memory:.1f} GiB at batch {GOAL_BATCH}" if four else f"batch {GOAL_BATCH} not measured"
        said.append(f"{kind}: {speed} (goal {GOAL_SPEED:g}), {held} (goal {GOAL_GIB:g}): {'met' if met else 'not met'}")
    return said


def show(facts: dict[str, Any], table: Sequence[dict[str, Any]]) -> None:
    """Print all of it."""
    print(
        f"{facts['variant']} ({facts['size']}: {facts['parameters'] / 1e6:.3g} million parameters, "
        f"{facts['trained'] / 1e6:.3g} of them trained) on {facts['device']}, torch {facts['torch']}; denoiser "
        f"{facts['denoiser']}, adapter {facts['adapter']}, rasteriser {facts['rasteriser']}; "
        f"{facts['loaded_gib']:.2f} GiB before the first update; {facts['objects']} objects an update, "
        f"{facts['transitions']} of {facts['steps']} transitions each; reward {facts['reward']}, "
        f"decoder {facts['decoder']}, recompute {facts['recompute']}\n"
    )
    print("| schedule | batch | s a transition | training alone | transitions/s, times public | training | GiB |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for r in table:
        if r["failed"] or "seconds" not in r:
            print(f"| {r['schedule']} | {r['batch']} | {r['failed'] or 'not measured'} | | | | |")
            continue
        ratios = [f"{r[name]:.2f}" if r[name] else "-" for name in ("times_seconds", "times_training")]
        cells = [f"{r['seconds']:.4g}", f"{r['training']:.4g}", *ratios, f"{r['gib']:.2f}"]
        print(f"| {r['schedule']} | {r['batch']} | {' | '.join(cells)} |")
    print()
    print("\n".join(verdicts(table)))
    if facts["size"] != "full" or not facts["cuda"]:
        print("the goal is about the full size on a GPU: this run says nothing of it")


def device(size: str) -> str:
    """Where to measure if nothing is said.

    Raises:
        SystemExit: If a full size should run without a GPU.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if size != "tiny":
        raise SystemExit("torch sees no CUDA device; --size tiny runs on the CPU, --device cpu insists")
    return "cpu"


def main(args: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", choices=list(MODELS), default="pas")
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny: for the CPU, says nothing")
    parser.add_argument("--device", help="cuda where there is one; else --size tiny runs on the CPU")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the denoiser")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--gradient-at", nargs="+", choices=list(KINDS), default=["estimate", "x0"], help="our rows")
    parser.add_argument("--objects", type=int, default=0, help="of an update; 0 = the largest batch")
    parser.add_argument("--transitions", type=int, help="trained of each object, out of --steps; 8, cube 20")
    parser.add_argument("--steps", type=int, help="20, cube 50")
    parser.add_argument(
        "--sampled", type=int, default=4, help="objects that `public` samples at a time; 4 in its recipes"
    )
    parser.add_argument(
        "--reward", choices=["judge", "colorfulness"], default="judge", help="judge: as the aesthetic one"
    )
    parser.add_argument("--decoder", choices=["full", "tiny"], default="full")
    parser.add_argument("--decode-rows", type=int, default=4, help="views decoded at a time")
    parser.add_argument("--recompute", action="store_true", help="keep no activations of denoiser and decoder")
    parser.add_argument("--scenes", type=int, default=1, help="objects decoded and judged at a time")
    parser.add_argument("--chunk", type=int, default=1, help="transitions of an object per graph")
    parser.add_argument(
        "--tf32", action="store_true", help="float32 matrix products in TF32, as the public code has it"
    )
    parser.add_argument("--updates", type=int, default=2, help="updates to take the fastest of")
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    given = vars(parser.parse_args(args))
    sizes, kinds, updates, out = (given.pop(name) for name in ("batch_sizes", "gradient_at", "updates", "out"))
    usual = CUBE if given["variant"] == "cube" else {"steps": Setup.steps, "transitions": Setup.transitions}
    given |= {name: value for name, value in usual.items() if given[name] is None}
    if min([*sizes, updates, given["sampled"]]) < 1:
        raise SystemExit("batch sizes, --updates and --sampled must be at least 1")
    objects = given["objects"] or max(sizes)
    odd = [size for size in sizes if objects % size]
    if odd:
        raise SystemExit(f"--objects {objects} is no multiple of batch size {odd[0]}; all rows train the same ones")
    setup = Setup(**given | {"objects": objects, "device": given["device"] or device(given["size"])})
    bench = Bench(setup)
    rows = [Row(PUBLIC, 1), *(Row(kind, size) for kind in kinds for size in sizes)]
    for update in range(updates + 1):
        for row in rows:
            if not row.failed:
                bench.measure(row, update, counts=update > 0)  # the first is a warm-up
    table = summary(rows, setup.objects * min(setup.transitions, setup.steps))
    facts = bench.facts()
    show(facts, table)
    if out is not None:
        out.write_text(json.dumps({"facts": facts, "rows": table, "goal": verdicts(table)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
