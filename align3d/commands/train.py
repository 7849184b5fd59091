"""`align3d train`: fine-tune a generator's adapter with a reward."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from align3d.commands.earlier import model_of
from align3d.commands.flags import value_of
from align3d.commands.inputs import MAX_SEED, check_range, choose_prompts, load_model, read_prompts
from align3d.commands.listed import listed
from align3d.commands.recipe import of_recipe, recorded
from align3d.config import described, of_reward
from align3d.log import WATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.loop import Loop
    from align3d.scenes.cameras import CameraSampling
    from align3d.watch import Watch, Watching


def told(args: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the arguments say by naming a recipe or an adapter to start from, as defaults.

    Raises:
        ValueError: If there is no such recipe, or a variant of none.
    """
    found = of_recipe(args, "train")
    if found:
        found["options"] = {"prompts": tyro.MISSING, **found["options"]}
    path = value_of("--model.adapter", args)
    with contextlib.suppress(FileNotFoundError):  # of another kind, or not there, which the model says when it loads it
        model = model_of(Path(path)) if path is not None else {}
        found["model"] = found.get("model", {}) | {name: model[name] for name in ("rank", "alpha") if name in model}
    return found


@dataclass(frozen=True, kw_only=True)
class Train:
    """Fine-tune a generator with a reward.

    `align3d train RECIPE ...` sets options as a published run had them (`align3d list recipes`): they are the defaults
    then, and RECIPE --help shows them.

    Writes a run's folder: config.json, metrics.jsonl, checkpoints/, adapter/, samples/, report.html. Ctrl-C (or
    SIGTERM) finishes the update and saves; the same command with --resume goes on, to the same bits. --seed is short
    for --loop.seed, 0 to 2^63 - 1. Under torchrun, each process samples a batch of its own.

    --watch NAME ... scores held-out samples by rewards that are not trained on, every few updates, with FID and
    diversity beside; --stop-when "fid > 40 or dnc < base - 3se" ends the run on them, that is if dnc is three standard
    errors below the base model's (docs/watching.md). The best adapter stays in best/.
    """

    recipe: str | None = None  # a published run, such as nabla-r2d3-dnc-diffsplat-pas; may stand first, as RECIPE
    variant: Literal["paper", "released"] | None = None  # of the recipe: as in the paper, or in its code; none = paper
    prompts: Path = Path("train")  # a prompt per line; train, heldout = the embedded generator's lists, or the model's
    skip_unknown: bool = False  # leave out prompts that the reward cannot judge, instead of refusing them
    keep_above: float | None = None  # train only on prompts with a reward greater than this in --prompt-rewards
    prompt_rewards: Path | None = None  # their rewards: .npy, .jsonl, or table.json of evaluate; see docs/prompts.md
    out: Path  # the run's folder; must be new, or an earlier start of the same run with --resume
    resume: bool = False  # go on from the newest checkpoint in the folder
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one
    noise: float = 0.0  # standard deviation of noise on the colours (0 to 1) that the reward sees; the paper adds 0.002
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # red, green, blue behind the object, 0 to 1

    parts: ClassVar[dict[str, str | None]] = {"model": "embedded", "method": "nabla", "reward": None}
    groups: ClassVar[dict[str, str]] = {
        "loop": "align3d.loop:Loop",
        "cameras": "align3d.scenes.cameras:CameraSampling",
        "watch": "align3d.watch:Watch",
    }
    first: ClassVar[str] = "--recipe"
    defaults: ClassVar[Any] = staticmethod(told)
    shorthands: ClassVar[dict[str, str]] = {
        "--weights": "--model.weights",
        "--seed": "--loop.seed",
        "--watch": "--watch.rewards",
        "--stop-when": "--watch.stop-when",
    }
    many_processes: ClassVar[bool] = True
    optimises: ClassVar[str] = "model"


def run(
    options: Train,
    *,
    names: dict[str, str],
    model: Any,
    method: Any,
    reward: Any,
    loop: Loop,
    cameras: CameraSampling,
    watch: Watch | None = None,
) -> None:
    """Train, or go on training."""
    from align3d import distributed
    from align3d.loop import fit
    from align3d.rewards.score import Scorer, as_reward, known
    from align3d.samples import Sampling, shown

    check_range("seed", loop.seed, 0, MAX_SEED)
    read = partial(read_prompts, model=model)
    prompts = read(options.prompts)
    prompts = choose_prompts(prompts, options.keep_above, options.prompt_rewards, "--prompt-rewards")
    if getattr(method, "optimises", "model") != "model":
        raise ValueError(f"method {names['method']} optimises one scene: align3d optimize --method {names['method']}")
    score = Scorer(as_reward(reward), cameras, options.noise, options.background)
    if options.skip_unknown:
        prompts = known(prompts, {names["reward"]: score.reward})
    score.check(prompts, loop.group)
    config = {"model": described(model, names["model"]), "method": described(method, names["method"])}
    config["reward"] = of_reward(score.reward, names["reward"])
    config |= {"loop": asdict(loop), "cameras": asdict(cameras)}
    config |= {"noise": options.noise, "background": options.background, **recorded(options.recipe, options.variant)}
    watching = None
    if watch is not None and not watch.on and watch != type(watch)():
        raise ValueError("there are options of watching, but nothing to watch; give --watch REWARD, or drop them")
    if watch is not None and watch.on:
        config["watch"] = asdict(watch)
        watching = watch.plan(options.out, names["reward"], score.reward, listed, read, loop.batch_size)
    rewards = {names["reward"]: score.reward}
    samples = Sampling(options.out, shown(prompts), rewards, loop.seed, loop.batch_size)
    arguments = (load_model(model, names["model"], options.device), method, score, prompts, loop)
    try:
        rows = fit(
            *arguments,
            out=options.out,
            config=config,
            resume=options.resume,
            hooks=[samples, lambda done, model: report(options.out)],
            watch=watching,
        )
    except KeyboardInterrupt:
        if distributed.rank() == 0 and (options.out / "config.json").exists():  # else there is no run yet
            report(options.out)
        raise
    if distributed.rank() == 0:
        report(options.out)
        if watching is not None:
            ended(watching, rows, loop.updates)
        print(f"{rows[-1]['step']} updates done: open {options.out / 'report.html'}", flush=True)


def ended(watching: Watching, rows: list[dict[str, Any]], updates: int) -> None:
    """Say on standard error why the run has ended, if a condition did it, and where its best adapter is."""
    from align3d.watch import best

    why, found = watching.stops(rows[-1]) if rows else None, best(watching.out)
    if why is not None:
        step, value = rows[-1]["step"], rows[-1][f"{WATCHED}{why.name}"]
        print(f"align3d: ended after update {step} of {updates}: {why}, at {value:.4g}", file=sys.stderr)
    if found is None:
        print("align3d: no best adapter: no look was free of what ends the run", file=sys.stderr)
    else:
        kept = f"{watching.out / 'best'}, after update {found['step']}: {found['best']} {found['value']:.4g}"
        print(f"align3d: best adapter: {kept}", file=sys.stderr)
    if why is not None:
        print("align3d: to go on all the same: --resume with another --stop-when", file=sys.stderr)


def report(out: Path) -> None:
    """Write the run's page; if that fails, says so and goes on, since the run itself is worth more."""
    from align3d.report import write_report

    try:
        write_report(out)
    except Exception as error:
        print(f"align3d: no report: {error}", file=sys.stderr)
