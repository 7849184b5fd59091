"""`align3d optimize`: one scene for one prompt, distilled from a prior."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.commands.flags import value_of
from align3d.commands.inputs import MAX_SEED, check_range, choose_device, load_prior, read_prompts, slug
from align3d.commands.parts import load_part
from align3d.commands.recipe import of_recipe, recorded
from align3d.commands.train import report
from align3d.config import described, of_reward
from align3d.files import atomic_write, read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.film import Film, Filming
    from align3d.loop import Loop
    from align3d.types import Prior

LOOP = {  # as the published runs have it, but for their length
    **{"updates": 200, "batch_size": 1, "learning_rate": 1e-2, "betas": (0.9, 0.99), "eps": 1e-15, "warmup": 0},
    **{"weight_decay": 0.0, "max_grad_norm": 0.0, "checkpoint_every": 50, "sample_every": 50},
}


DONE = "done.json"  # written last, when a run has made all of its updates
GUIDANCE = {"embedded": 5.0}  # of SDS with a prior that has been tried with less than the published 100
USUAL = {"prior": "embedded", "method": "sds", "scene": "gaussians", "reward": "clip-tiny", "cameras": "ring"}


def told(args: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Defaults: those of the recipe that is named, or of distillation; and what the method wants of the prior.

    Raises:
        ValueError: If there is no such recipe, or a variant of none.
    """
    found = of_recipe(args, "optimize") or {"loop": LOOP}
    prior, method = (
        value_of(f"--{kind}", args, found.get(kind, {}).get("name", USUAL[kind])) for kind in ("prior", "method")
    )
    if prior in GUIDANCE and "method" not in found:
        found["method"] = {"name": "sds", "guidance": GUIDANCE[prior]}
    if value_of("--method.weighting.kind", args) == "none" and "explore" in found.get("method", {}):
        found["method"]["explore"] |= {"candidates": 1}  # of a recipe, whose many would have no weighting
        found.pop("reward", None)  # which would never be asked, and may want files
    if method == "bridge" and found.get("method", {}).get("name") != "bridge":
        updates = value_of("--updates", args, value_of("--loop.updates", args, str(found["loop"]["updates"])))
        if updates.isdecimal():  # else it is refused as any other option
            found["method"] = {"name": "bridge", "stage_two": int(updates) // 2}  # half of the run, as published
    rank = getattr(load_part("method", method), "rank", 0)
    if rank:
        own = found.get("prior", {})
        found["prior"] = {"rank": rank, **(own if own.get("name") == prior else {}), "name": prior}
    return found


@dataclass(frozen=True, kw_only=True)
class Optimize:
    """Make a scene for a prompt: distil a frozen prior into it, with noises that a reward has chosen.

    `align3d optimize RECIPE ...` sets options as a published run had them (`align3d list recipes`): they are the
    defaults then, and RECIPE --help shows them.

    Writes a run's folder: scene.ply (of other kinds of scene, other files), views.png, turntable.webp, a film of how it
    came to be (optimization.mp4), config.json, metrics.jsonl, checkpoints/, samples/, report.html. Ctrl-C (or SIGTERM)
    finishes the update and saves; the same command with --resume goes on, to the same bits. --candidates N tries N
    noises in each update, --weighting says how many of them count: best, min-max or weighted, by --reward. --seed is
    short for --loop.seed.
    """

    recipe: str | None = None  # a published run, such as rewardsds-2d-sds; may stand first, as RECIPE
    variant: str | None = None  # of the recipe, such as paper or released; none = its first
    prompt: str | None = None  # what to make
    prompts: Path | None = None  # instead: text file, a prompt per line, made one after another in folders below --out
    out: Path  # the run's folder; must be new, or an earlier start of the same run with --resume
    resume: bool = False  # go on from the newest checkpoint in the folder
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # red, green, blue behind the object, 0 to 1

    parts: ClassVar[dict[str, str | None]] = {**USUAL}
    groups: ClassVar[dict[str, str]] = {"loop": "align3d.loop:Loop", "film": "align3d.film:Film"}
    first: ClassVar[str] = "--recipe"
    defaults: ClassVar[Any] = staticmethod(told)
    shorthands: ClassVar[dict[str, str]] = {
        "--seed": "--loop.seed",
        "--updates": "--loop.updates",
        "--weighting": "--method.weighting.kind",
        "--candidates": "--method.explore.candidates",
    }
    optimises: ClassVar[str] = "scene"


def run(
    options: Optimize,
    *,
    names: dict[str, str],
    prior: Any,
    method: Any,
    scene: Any,
    reward: Any,
    loop: Loop,
    film: Film,
    cameras: Any,
) -> None:
    """Optimise, or go on."""
    from align3d.rewards.score import Scorer, as_reward

    check_range("seed", loop.seed, 0, MAX_SEED)
    if getattr(method, "optimises", "model") != "scene":
        raise ValueError(f"method {names['method']} trains a generator: align3d train --method {names['method']}")
    score = Scorer(as_reward(reward), cameras, 0.0, options.background)
    check(names, method, score.reward)
    unused(loop, names["scene"])
    jobs = planned(options)
    score.check(list(jobs), candidates(method))
    parts = {"prior": prior, "method": method, "scene": scene, "cameras": cameras}
    config = {kind: described(part, names[kind]) for kind, part in parts.items()}
    config |= {"reward": of_reward(score.reward, names["reward"]), "loop": asdict(loop), "film": asdict(film)}
    config |= recorded(options.recipe, options.variant) | {"background": options.background}
    work = Work(names, prior, method, scene, score, loop, film, options.device, config)
    if options.prompts is None:
        ((prompt, out),) = jobs.items()
        print(work.make(prompt, out, options.resume, work.teacher()), flush=True)
    else:
        make_all(work, jobs)


def planned(options: Optimize) -> dict[str, Path]:
    """Each prompt with its folder.

    Raises:
        FileNotFoundError: If there is no such file of prompts.
        ValueError: If there is not one prompt, or a file of them, or one is too long.
    """
    from align3d.models.text import check_lengths

    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("give --prompt TEXT or --prompts FILE, and not both")
    if options.prompt is not None:
        if not options.prompt.strip():
            raise ValueError("got an empty --prompt; give some words")
        check_lengths([options.prompt])
        return {options.prompt: options.out}
    prompts = list(dict.fromkeys(read_prompts(options.prompts)))
    check_lengths(prompts)
    return {prompt: options.out / f"{i:03}-{slug(prompt)}" for i, prompt in enumerate(prompts)}


@dataclass(frozen=True)
class Work:
    """What the optimisations of all prompts share."""

    names: dict[str, str]
    prior: Any
    method: Any
    scene: Any
    score: Any  # a rewards.score.Scorer
    loop: Loop
    film: Film
    device: str
    config: dict[str, Any]

    def teacher(self) -> Prior:
        """The prior, loaded.

        Raises:
            ValueError: If it cannot be, or does not take the cameras.
        """
        found = load_prior(self.prior, self.names["prior"], self.device)
        fits(self.names["prior"], found, self.score.cameras)
        return found

    def make(self, prompt: str, out: Path, resume: bool, teacher: Prior) -> str:
        """Optimise one scene, or go on; says how it went."""
        from align3d.film import Filming
        from align3d.loop import fit
        from align3d.previews import Previews
        from align3d.starts import Stage

        background, device = self.score.background, choose_device(self.device)
        stage = Stage(teacher, self.score.cameras, background, prompt, self.loop.seed, device)
        subject, reward = self.scene.subject(stage), self.score.reward
        lacking = sorted(reward.needs - {"rgb"})
        if lacking and getattr(subject.scene(), "flat", False):
            needs = f"reward {self.names['reward']} needs {', '.join(lacking)}"
            raise ValueError(f"{needs}, and a picture is colours alone; use a reward of pictures")
        terms = getattr(reward, "terms", {})  # of a sum, each by itself: outside of an update there are no candidates
        shown = {name: term.reward for name, term in terms.items()} or {self.names["reward"]: reward}
        filming = Filming(self.film, out, None if self.loop.minutes else self.loop.updates, background)
        hooks = [Previews(out, prompt, shown, self.loop.seed, background), filming, lambda done, model: report(out)]
        arguments, before = (subject, self.method, self.score, [prompt], self.loop), written(out)
        try:
            rows = fit(*arguments, out=out, config={"prompt": prompt, **self.config}, resume=resume, hooks=hooks)
        except BaseException:
            if written(out) != before:  # else nothing was learnt, and what there is already is of an earlier start
                rescue(out, subject, filming)  # the scene is as the last good update left it
            raise
        file = ended(out, subject, filming)
        atomic_write(out / DONE, json.dumps({"step": rows[-1]["step"], "scene": file.name}) + "\n")
        return f"{rows[-1]['step']} updates done: {file}, open {out / 'report.html'}"

    def finished(self, prompt: str, out: Path) -> bool:
        """Whether a folder holds all updates of this prompt's run and the files that it ends in.

        Raises:
            ValueError: If it is of a run of another configuration, or of another prompt.
        """
        from align3d import checkpoint, distributed

        done = read_json(out / DONE).get("step", 0) if (out / DONE).is_file() else 0
        if not isinstance(done, int) or done < self.loop.updates:
            return False
        inputs = self.scene.inputs() if hasattr(self.scene, "inputs") else {}
        wanted = checkpoint.record({"prompt": prompt, **self.config}, [prompt], distributed.world(), inputs)
        checkpoint.compare(out, read_json(out / "config.json"), wanted)
        return True


def written(out: Path) -> int:
    """How much a run has told of its updates, bytes."""
    path = out / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def rescue(out: Path, subject: Any, filming: Filming) -> None:
    """Write what a run ends in after a failure, or say why that fails too."""
    try:
        ended(out, subject, filming)
    except Exception as error:
        print(f"align3d: the scene could not be written either: {error}", file=sys.stderr)


def ended(out: Path, subject: Any, filming: Filming) -> Path:
    """Write what a run ends in, even one that goes on later; the scene's file.

    If there can be no film, says so and goes on: the scene is worth more.
    """
    from align3d.log import read_metrics
    from align3d.previews import finish

    file = finish(out, subject, filming.background)
    try:
        rows = read_metrics(out / "metrics.jsonl")
        filming.develop(subject, rows[-1]["step"] if rows else 0)
    except Exception as error:
        print(f"align3d: no film: {error}", file=sys.stderr)
    report(out)
    return file


def make_all(work: Work, jobs: dict[str, Path]) -> None:
    """One prompt after another; what another process is at, or has finished, is left to it.

    Raises:
        ValueError, FloatingPointError: At the end, if some have failed; the latter if they all met a number that is not
            finite.
    """
    import torch

    from align3d.checkpoint import BusyError

    failed: dict[str, Exception] = {}
    teacher = None
    for i, (prompt, out) in enumerate(jobs.items()):
        where = f"{i + 1}/{len(jobs)} {out.name}"
        try:
            if work.finished(prompt, out):
                print(f"{where}: finished before", flush=True)
                continue
            if teacher is None or teacher.adapter is not None:  # which the scene before has trained
                teacher = work.teacher()
            print(f"{where}: {work.make(prompt, out, (out / 'config.json').is_file(), teacher)}", flush=True)
        except BusyError:
            print(f"{where}: another process is at it", flush=True)
        except (ValueError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
            failed[out.name] = error
            print(f"align3d: {where}: {error}", file=sys.stderr, flush=True)
    if failed:
        kind = FloatingPointError if all(isinstance(e, FloatingPointError) for e in failed.values()) else ValueError
        raise kind(f"{len(failed)} of {len(jobs)} prompts failed: {', '.join([*failed][:8])}")


def check(names: dict[str, str], method: Any, reward: Any) -> None:
    """Refuse a reward that cannot judge candidates.

    Raises:
        ValueError: If it needs more than pictures, and there are several candidates.
    """
    lacking = sorted(reward.needs - {"rgb"})
    if lacking and candidates(method) > 1:
        raise ValueError(
            f"reward {names['reward']} needs {', '.join(lacking)}, and candidates are judged by what the prior paints, "
            f"which is colours alone; use a reward of pictures"
        )


def candidates(method: Any) -> int:
    """How many noises an update of the method tries."""
    return method.explore.candidates if hasattr(method, "explore") else 1


def unused(loop: Loop, scene: str) -> None:
    """Refuse options of training that would do nothing to a scene of a known kind.

    Raises:
        ValueError: Names the option.
    """
    from align3d.starts import STARTS

    if loop.ema:
        raise ValueError("loop.ema is for generators: no scene is written of a running mean; leave it out")
    if scene in STARTS and loop.learning_rate not in (LOOP["learning_rate"], type(loop).learning_rate):
        raise ValueError(
            f"loop.learning_rate does nothing to a scene of {scene}, whose parts have rates of their own; leave it out"
        )


def fits(name: str, prior: Prior, cameras: Any) -> None:
    """Refuse what is no prior, one whose latents are not what it says, and cameras that it does not take.

    Raises:
        ValueError: Says what is missing or does not fit.
    """
    import torch

    needed = ("schedule", "views", "latent_shape", "size", "encode", "predict", "latents", "images", "reference")
    lacking = [member for member in needed if not hasattr(prior, member)]
    if lacking:
        raise ValueError(f"what prior {name} loads has no {', '.join(lacking)}; docs/extending.md shows a prior")
    views = getattr(cameras, "views", 1)  # other cameras than ours may be without; the prior says when it sees them
    if views > prior.views > 1:
        raise ValueError(f"prior {name} sees {prior.views} views together, got --cameras.views {views}")
    with torch.no_grad():
        device = getattr(prior, "device", "cpu")
        shape = prior.latents(torch.full((1, 1, 3, prior.size, prior.size), 0.5, device=device)).shape[2:]
    if tuple(shape) != tuple(prior.latent_shape):
        raise ValueError(
            f"prior {name} says that latents of a view are {list(prior.latent_shape)}, and makes {list(shape)} of "
            f"{prior.size} pixels; one of its latent_shape, size and latents() is wrong"
        )
