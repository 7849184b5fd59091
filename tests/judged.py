"""Runs of a toy model that the tests of `evaluate` and `compare` measure; not tests themselves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from command_checks import MINE

from align3d.cli import main

PROMPTS = ("a red cube", "a long prompt of a blue ball", "some lamp", "a green mug")
PARTS = (
    MINE
    + '''

@dataclass(frozen=True)
class Corners:
    """Colours of two corners and the middle."""

    scale: float = 1.0  # factor on the features
    dims = 9

    def check(self):
        if self.scale == 0:
            raise ValueError("no weights of corners")

    def __call__(self, images):
        places = ((3, 4), (5, 2), (4, 4))
        return self.scale * torch.cat([images[:, :, i, j] for i, j in places], 1)


class Flat:
    """Normals that the toy's scenes do not have, once they are taken away."""

    differentiable = False
    needs = frozenset({"normal"})

    def __call__(self, views, prompts):
        return views.normal.mean((-1, -2, -3))
'''
)
TRAIN = ["train", "--model", "mine:Toy", "--reward", "mine:redness", "--prompts", "prompts.txt", "--cameras.size", "8"]
TRAIN += ["--loop.updates", "3", "--loop.batch-size", "2", "--loop.checkpoint-every", "1", "--loop.keep", "0"]
TRAIN += ["--loop.learning-rate", "0.1", "--loop.warmup", "0", "--method.transitions", "2", "--method.rho", "0.05"]
MEASURE = ["--model", "mine:Toy", "--rewards", "mine:redness", "jpeg-compress", "--features", "mine:Corners"]
MEASURE += ["--size", "8", "--prompts", "prompts.txt", "--num", "3", "--views", "3", "--batch-size", "16"]


def furnish(folder: Path) -> None:
    """The user's module and prompts."""
    (folder / "mine.py").write_text(PARTS, encoding="utf-8")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    sys.modules.pop("mine", None)


def train(*extra: str) -> None:
    """A run in the current folder."""
    assert main([*TRAIN, *extra]) == 0


def copy(old: Path, new: Path, **changes: object) -> None:
    """A run with other values in its config.json, given as part__field."""
    shutil.copytree(old, new)
    config = json.loads((new / "config.json").read_text())
    for key, value in changes.items():
        at = config if key.startswith("inputs") else config["config"]
        *path, last = key.split("__")
        for part in path:
            at = at[part]
        at[last] = value
    (new / "config.json").write_text(json.dumps(config))


def table(folder: str = "out") -> dict:
    """What table.json holds."""
    return json.loads((Path(folder) / "table.json").read_text(encoding="utf-8"))
