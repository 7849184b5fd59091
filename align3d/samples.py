"""Samples along a run: the same prompts and seeds every time, so that the first ones, the base model's, compare.

samples/step-NNNNNN/                after NNNNNN updates; appears whole
    sheet.png                       all samples, from two sides
    00.png, 01.png, ...             each prompt's first seed
    00.webp, ...                    the same all around, for a few prompts
    samples.json                    prompts, seeds, scores, and how much the seeds of a prompt differ
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.files import temporary, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from align3d.evaluate import Evaluation
    from align3d.types import BaseModel, Reward

SHOWN, TURNED = 9, 3  # prompts in pictures, and all around, at most
SEEDS = 2  # of each prompt; their difference is the diversity
VIEWS = [0, 2]  # of evaluate.AZIMUTHS, opposite ones, on the sheet
FRAMES, SIDE = 20, 160  # of the turntables; pixels


@dataclass(frozen=True)
class Sampling:
    """What to draw, where; a hook for `loop.fit`.

    Takes nothing from the training's randomness: the noise of a sample depends on its prompt and seed alone.
    """

    out: Path  # the run's folder
    prompts: Sequence[str]  # those to show
    rewards: Mapping[str, Reward | Callable[..., Any]]  # name -> reward that scores the samples, as for `evaluate`
    seed: int = 0  # the first
    batch_size: int = 8  # samples at a time

    def __call__(self, done: int, model: BaseModel) -> None:
        """Draw and score samples of the model, which has learnt for `done` updates."""
        from align3d.evaluate import evaluate
        from align3d.generate import generate
        from align3d.log import counting
        from align3d.scenes.pictures import save_turntable, turntable

        seeds = range(self.seed, self.seed + SEEDS)
        with drawing(self.out, done) as folder:
            tell = counting(f"pictures after update {done}", brief=True)
            seen = evaluate(model, self.prompts, seeds, self.rewards, batch_size=self.batch_size, progress=tell)
            save(folder, seen)
            tell = counting(f"turntables after update {done}", brief=True)
            for i, batch in enumerate(generate(model, self.prompts[:TURNED], seeds[:1], 1, tell)):
                save_turntable(folder / f"{i:02}.webp", turntable(batch.scene, FRAMES, SIDE))


@contextmanager
def drawing(out: Path, done: int) -> Iterator[Path]:
    """A folder to draw into what is seen after `done` updates; it appears in a run's samples/ whole or not at all.

    Raises:
        WriteError: If the disk is full; nothing is left then.
    """
    final = out / "samples" / f"step-{done:06}"
    folder = temporary(final)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with writing(final):
            folder.mkdir(parents=True)
            yield folder
            shutil.rmtree(final, ignore_errors=True)  # left by a start that was killed before its next checkpoint
            folder.rename(final)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room
        raise


def shown(prompts: Sequence[str]) -> list[str]:
    """At most SHOWN different prompts, spread over the pool."""
    from align3d.evaluate import spread

    unlike = list(dict.fromkeys(prompts))
    return [unlike[i] for i in spread(len(unlike), SHOWN)]


def save(folder: Path, seen: Evaluation) -> None:
    """Write the pictures and the numbers of samples; they have pictures and several seeds."""
    from PIL import Image

    from align3d.scenes.pictures import save_sheet, to_uint8

    pictures = seen.pictures.float() / 255  # (P, S, V, 3, H, W)
    for i, picture in enumerate(to_uint8(pictures[:, 0, 0])):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    rows = pictures[:, :, VIEWS].flatten(1, 2)
    labels = [label for prompt in seen.prompts for label in (prompt, *[""] * (rows.shape[1] - 1))]
    save_sheet(folder / "sheet.png", rows.flatten(0, 1), 2 * rows.shape[1], labels)
    numbers = {"mean": seen.mean(), "diversity": float(seen.diversity().mean())}
    (folder / "samples.json").write_text(json.dumps(seen.as_dict() | numbers, indent=1) + "\n", encoding="utf-8")
