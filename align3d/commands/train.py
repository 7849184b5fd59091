"""`align3d train`: fine-tune a generator's adapter with a reward."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from align3d.commands.flags import describe
from align3d.commands.inputs import choose_device, read_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from align3d.loop import Loop
    from align3d.scenes.cameras import CameraSampling
    from align3d.types import BaseModel

SHOWN = 8  # prompts on the sample sheets, at most
ANGLES = (30.0, 210.0)  # degrees; the views of each sample on the sheets
SIDE = 128  # pixels, of a view on the sheets


@dataclass(frozen=True, kw_only=True)
class Train:
    """Fine-tune a generator with a reward.

    Writes a run's folder: config.json, metrics.jsonl, checkpoints/, adapter/. Ctrl-C finishes the update and saves;
    the same command with --resume goes on, to the same bits. --seed is short for --loop.seed. Under torchrun, each
    process samples a batch of its own.
    """

    prompts: Path = Path("train")  # text file, a prompt per line; train, heldout = lists of the embedded generator
    out: Path  # the run's folder; must be new, or an earlier start of the same run with --resume
    resume: bool = False  # go on from the newest checkpoint in the folder
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = the GPU where there is one

    parts: ClassVar[dict[str, str | None]] = {"model": "embedded", "method": "nabla", "reward": None}
    groups: ClassVar[dict[str, str]] = {
        "loop": "align3d.loop:Loop",
        "cameras": "align3d.scenes.cameras:CameraSampling",
    }
    shorthands: ClassVar[dict[str, str]] = {"--seed": "--loop.seed"}
    many_processes: ClassVar[bool] = True


def run(
    options: Train,
    *,
    names: dict[str, str],
    model: Any,
    method: Any,
    reward: Any,
    loop: Loop,
    cameras: CameraSampling,
) -> None:
    """Train, or go on training."""
    from align3d.loop import fit
    from align3d.rewards.score import Scorer

    prompts = read_prompts(options.prompts)
    score = Scorer(reward, cameras)
    score.check(prompts)
    parts = {"model": model, "method": method, "reward": reward}
    config = {kind: describe(names[kind], part) for kind, part in parts.items()}
    config |= {"loop": asdict(loop), "cameras": asdict(cameras)}
    fit(
        model.load(device=choose_device(options.device)),
        method,
        score,
        prompts,
        loop,
        out=options.out,
        config=config,
        resume=options.resume,
        hooks=[sheets(options.out, prompts, loop.seed)],
    )


def sheets(out: Path, prompts: Sequence[str], seed: int) -> Callable[[int, BaseModel], None]:
    """A hook that draws samples/step-NNNNNN/sheet.png, of the same prompts with the same seed every time."""
    from align3d.generate import generate
    from align3d.scenes.pictures import look, save_sheet

    shown = prompts[:: max(1, len(prompts) // SHOWN)][:SHOWN]
    labels = [label for prompt in shown for label in (prompt, *[""] * (len(ANGLES) - 1))]

    def hook(done: int, model: BaseModel) -> None:
        import torch

        rows = [look(batch.scene, 1, ANGLES, SIDE)[0] for batch in generate(model, shown, [seed], batch_size=1)]
        path = out / "samples" / f"step-{done:06}" / "sheet.png"
        save_sheet(path, torch.cat(rows), 4 * len(ANGLES), labels)

    return hook
