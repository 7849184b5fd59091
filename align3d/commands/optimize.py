"""`align3d optimize`: one scene for one prompt, distilled from a prior."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.commands.inputs import MAX_SEED, check_range, choose_device, load_prior
from align3d.commands.train import report
from align3d.config import described, of_reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align3d.loop import Loop
    from align3d.scenes.rings import Ring
    from align3d.types import Prior

LOOP = {  # as the published runs have it, but for their length
    **{"updates": 200, "batch_size": 1, "learning_rate": 1e-2, "betas": (0.9, 0.99), "eps": 1e-15, "warmup": 0},
    **{"weight_decay": 0.0, "max_grad_norm": 0.0, "checkpoint_every": 50, "sample_every": 50},
}


def told(args: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Defaults that differ from those of training."""
    return {"loop": LOOP}


@dataclass(frozen=True, kw_only=True)
class Optimize:
    """Make a scene for a prompt: distil a frozen prior into it, with noises that a reward has chosen.

    Writes a run's folder: scene.ply (of other kinds of scene, other files), views.png, turntable.webp, config.json,
    metrics.jsonl, checkpoints/, samples/, report.html. Ctrl-C (or SIGTERM) finishes the update and saves; the same
    command with --resume goes on, to the same bits. --candidates N tries N noises in each update, --weighting says how
    many of them count: best, min-max or weighted, by --reward. --seed is short for --loop.seed.
    """

    prompt: str  # what to make
    out: Path  # the run's folder; must be new, or an earlier start of the same run with --resume
    resume: bool = False  # go on from the newest checkpoint in the folder
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # red, green, blue behind the object, 0 to 1

    parts: ClassVar[dict[str, str | None]] = {
        **{"prior": "embedded", "method": "sds", "scene": "gaussians", "reward": "clip-tiny"}
    }
    groups: ClassVar[dict[str, str]] = {"loop": "align3d.loop:Loop", "cameras": "align3d.scenes.rings:Ring"}
    defaults: ClassVar[Any] = staticmethod(told)
    shorthands: ClassVar[dict[str, str]] = {
        "--seed": "--loop.seed",
        "--updates": "--loop.updates",
        "--weighting": "--method.weighting.kind",
        "--candidates": "--method.explore.candidates",
    }


def run(
    options: Optimize,
    *,
    names: dict[str, str],
    prior: Any,
    method: Any,
    scene: Any,
    reward: Any,
    loop: Loop,
    cameras: Ring,
) -> None:
    """Optimise, or go on."""
    from align3d.interrupts import Terminated
    from align3d.loop import fit
    from align3d.previews import Previews, finish
    from align3d.rewards.score import Scorer, as_reward

    check_range("seed", loop.seed, 0, MAX_SEED)
    if not options.prompt.strip():
        raise ValueError("got an empty --prompt; give some words")
    if getattr(method, "optimises", "model") != "scene":
        raise ValueError(f"method {names['method']} trains a generator: align3d train --method {names['method']}")
    score = Scorer(as_reward(reward), cameras, 0.0, options.background)
    check(names, method, score.reward)
    score.check([options.prompt], method.explore.candidates)
    device = choose_device(options.device)
    teacher = load_prior(prior, names["prior"], options.device)
    fits(names["prior"], teacher, cameras)
    subject = scene.subject(teacher, cameras, options.background, loop.seed, device)
    config = {"prompt": options.prompt, "reward": of_reward(score.reward, names["reward"])}
    parts = {"prior": prior, "method": method, "scene": scene}
    config |= {kind: described(part, names[kind]) for kind, part in parts.items()}
    config |= {"loop": asdict(loop), "cameras": asdict(cameras), "background": options.background}
    terms = getattr(score.reward, "terms", {})  # of a sum, each by itself: outside of an update there are no candidates
    shown = {name: term.reward for name, term in terms.items()} or {names["reward"]: score.reward}
    previews = Previews(options.out, options.prompt, shown, loop.seed, options.background)
    hooks = [previews, lambda done, model: report(options.out)]
    arguments = (subject, method, score, [options.prompt], loop)
    try:
        rows = fit(*arguments, out=options.out, config=config, resume=options.resume, hooks=hooks)
    except (KeyboardInterrupt, Terminated, FloatingPointError):  # the scene is as the last good update left it
        if (options.out / "metrics.jsonl").exists():  # else there is no run yet
            finish(options.out, subject, options.background)
            report(options.out)
        raise
    finish(options.out, subject, options.background)
    report(options.out)
    file = options.out / next(iter(subject.files()))
    print(f"{rows[-1]['step']} updates done: {file}, open {options.out / 'report.html'}", flush=True)


def check(names: dict[str, str], method: Any, reward: Any) -> None:
    """Refuse a reward that cannot judge candidates.

    Raises:
        ValueError: If it needs more than pictures, and there are several candidates.
    """
    lacking = sorted(reward.needs - {"rgb"})
    if lacking and method.explore.candidates > 1:
        raise ValueError(
            f"reward {names['reward']} needs {', '.join(lacking)}, and candidates are judged by what the prior paints, "
            f"which is colours alone; use a reward of pictures"
        )


def fits(name: str, prior: Prior, cameras: Ring) -> None:
    """Refuse cameras that the prior does not take.

    Raises:
        ValueError: If there are more views than it sees together.
    """
    if cameras.views > prior.views > 1:
        raise ValueError(f"prior {name} sees {prior.views} views together, got --cameras.views {cameras.views}")
