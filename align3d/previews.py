"""What a scene looks like along its optimisation, and the files that it ends in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.samples import drawing

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    """Write the scene's own files, views.png and turntable.webp, each whole or not at all; the first of them.

    Args:
        out: The run's folder.
        subject: What was optimised.
        background: RGB in [0, 1], of the pictures.
    """
    import torch

    from align3d.scenes.pictures import save_turntable, save_views, turntable

    with torch.no_grad():
        scene = subject.scene()
        pictures = {
            "views.png": lambda path: save_views(path, scene, background=background),
            "turntable.webp": lambda path: save_turntable(path, turntable(scene, background=background)),
        }
        if getattr(scene, "flat", False):
            pictures = {}
        files = subject.files() | pictures
        for name, write in files.items():
            write(out / name)
    return out / next(iter(files))
