"""What a scene looks like along its optimisation, and the files that it ends in."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.files import WriteError
from align3d.samples import drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from align3d.types import Reward

SIZE, FRAMES, SIDE = 192, 24, 192  # of the views; of a turntable


@dataclass(frozen=True)
class Previews:
    """Draws and scores the scene after some updates, into samples/step-NNNNNN/ as samples.Sampling; a hook for fit."""

    out: Path  # the run's folder
    prompt: str
    rewards: Mapping[str, Reward]
    seed: int
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, done: int, subject: Any) -> None:
        """Draw and score."""
        import torch
        from PIL import Image

        from align3d.scenes.pictures import save_sheet, save_turntable, to_uint8, turntable

        with drawing(self.out, done) as folder, torch.no_grad():
            scene = subject.scene()
            pictures, scores = seen(scene, self.prompt, self.rewards, self.background)
            Image.fromarray(to_uint8(pictures[0])).save(folder / "00.png")
            save_sheet(folder / "sheet.png", pictures, len(pictures), [self.prompt, *[""] * (len(pictures) - 1)])
            if not getattr(scene, "flat", False):
                save_turntable(folder / "00.webp", turntable(scene, FRAMES, SIDE, background=self.background))
            about = {"prompts": [self.prompt], "seeds": [self.seed], "mean": scores}
            (folder / "samples.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def seen(
    scene: Any, prompt: str, rewards: Mapping[str, Reward], background: tuple[float, float, float]
) -> tuple[Any, dict[str, float]]:
    """Four views of a scene, (4, 3, SIZE, SIZE) on the CPU, and what the rewards say of them."""
    from align3d.evaluate import evaluation_cameras
    from align3d.rewards.score import call_reward
    from align3d.types import CHANNELS

    needed = frozenset({"rgb"}).union(*(reward.needs for reward in rewards.values()))
    cameras = evaluation_cameras(SIZE, elevation=20.0)
    views = scene.render(cameras, want=[name for name in CHANNELS if name in needed], background=background)
    scores = {name: float(call_reward(reward, name, views, [prompt]).mean()) for name, reward in rewards.items()}
    return views.rgb[0].cpu(), scores


def finish(out: Path, subject: Any, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Path:
    """Write the scene's own files, then views.png and turntable.webp; the first of them.

    The first one is the scene itself: it is written before anything is made for the others. One of those that cannot
    be made is left out, and a line on standard error says so.

    Args:
        out: The run's folder.
        subject: What was optimised.
        background: RGB in [0, 1], of the pictures.

    Raises:
        ValueError: If the scene is broken.
        WriteError: If the disk is full.
    """
    import torch

    from align3d.scenes.pictures import save_turntable, save_views, turntable

    with torch.no_grad():
        (main, write), *others = subject.files().items()
        write(out / main)
        for name, write_other in others:
            attempt(out / name, write_other)
        scene = subject.scene()
        if not getattr(scene, "flat", False):
            attempt(out / "views.png", lambda path: save_views(path, scene, background=background))
            attempt(out / "turntable.webp", lambda path: save_turntable(path, turntable(scene, background=background)))
    return out / main


def attempt(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that can be made again from the scene; if that fails, say so and go on.

    Raises:
        WriteError: If the disk is full.
    """
    try:
        write(path)
    except WriteError:
        raise
    except (MemoryError, RuntimeError, ValueError) as error:  # out of memory is one of the first two
        why = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"align3d: {path.name} is not written: {why}; --resume tries again", file=sys.stderr)
