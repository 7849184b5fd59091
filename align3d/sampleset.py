"""Samples of a model, measured: rewards, features and a few pictures; in memory, or in a folder block by block.

    FOLDER/set.json          what is measured; other contents are refused
    FOLDER/block-00000/      an evaluation of some of the prompts, as `save` writes it; appears whole

Blocks are what several processes share out and what a start that was interrupted leaves behind. Which samples are in a
block, and which of them go through the model together, depends on neither, so the numbers do not, to the last bit.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align3d.evaluate import Evaluation, evaluate
from align3d.files import atomic_write, temporary, writing
from align3d.log import plain, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from align3d.features import FeatureNetwork
    from align3d.types import BaseModel, Cameras, Reward

LEAST = 16  # samples in a block; fewer would spend their time on starting and writing
TENSORS = "samples.safetensors"
TEXTS = "samples.json"


def measure(
    model: BaseModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rewards: Mapping[str, Reward | Callable[..., Any]],
    features: FeatureNetwork | None = None,
    cameras: Cameras | None = None,
    *,
    batch_size: int = 8,
    pictures: int = 0,
    progress: Callable[[float, int], None] | None = None,
) -> Evaluation:
    """Samples every prompt with every seed; gives their rewards, features and pictures, in memory.

    As `evaluate`, for sets too large to keep all pictures. A sample depends on its prompt and seed alone. For the base
    model, call it under `with model.reference():`. Then `metrics.frechet_distance` of two sets' `features.flatten(0,
    2)` is their FID, and `metrics.diversity(features)` how much the seeds of each prompt differ.

    Args:
        model: The generator as it is.
        prompts: P texts.
        seeds: S seeds; each gives one sample per prompt.
        rewards: Name -> reward, as for `evaluate`.
        features: What gives the features; None gives none.
        cameras: (1, V); None takes `evaluate.evaluation_cameras()`.
        batch_size: Samples at a time.
        pictures: Of so many seeds of each prompt, the first, pictures are kept.
        progress: As for `evaluate`.

    Raises:
        ValueError: As `evaluate` says.
    """
    seen = evaluate(
        model,
        prompts,
        seeds,
        rewards,
        cameras,
        features=features,
        batch_size=batch_size,
        keep=pictures > 0,
        progress=progress,
    )
    return seen if seen.pictures is None else replace(seen, pictures=seen.pictures[:, :pictures].clone())


def save(folder: Path, seen: Evaluation) -> None:
    """Write an evaluation as a folder that appears whole; it must not exist yet.

    Raises:
        WriteError: If the disk is full.
    """
    from safetensors.torch import save as to_bytes

    temp = temporary(folder)
    shutil.rmtree(temp, ignore_errors=True)
    tensors = {name: value.contiguous() for name, value in _tensors(seen).items() if value is not None}
    about = {"prompts": list(seen.prompts), "seeds": list(seen.seeds), "rewards": list(seen.rewards)}
    try:
        with writing(folder):
            temp.mkdir(parents=True)
            atomic_write(temp / TENSORS, to_bytes(tensors))
            atomic_write(temp / TEXTS, json.dumps(about, ensure_ascii=False) + "\n")
            temp.rename(folder)
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)  # a full disk needs the room
        raise


def load(folder: Path) -> Evaluation:
    """Read what `save` wrote.

    Raises:
        ValueError: If a file is missing or damaged; names it and says what to do.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about, path = read_json(folder / TEXTS), folder / TENSORS
    remedy = f"delete {folder} to measure it again"
    lists = [about.get(name) for name in ("prompts", "seeds", "rewards")]
    if not all(isinstance(values, list) for values in lists):
        raise ValueError(f"{folder / TEXTS}: damaged, prompts, seeds and rewards must be lists; {remedy}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or missing ({error}); {remedy}") from None
    prompts, seeds, rewards = (tuple(values) for values in lists)
    P, S, R = len(prompts), len(seeds), len(rewards)
    scores, features, pictures = (tensors.get(name) for name in ("scores", "features", "pictures"))
    good = scores is not None and scores.shape == (P, S, R) and scores.dtype == torch.float64
    good = good and (features is None or (features.ndim == 4 and features.shape[:2] == (P, S)))
    good = good and (pictures is None or (pictures.ndim == 6 and len(pictures) == P and pictures.dtype == torch.uint8))
    good = good and all(bool(x.isfinite().all()) for x in (scores, features) if x is not None)
    if not good:
        raise ValueError(f"{path}: damaged, its tensors are not those of {TEXTS}; {remedy}")
    return Evaluation(prompts, seeds, rewards, scores, pictures, features)


def join(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of the same seeds and rewards, prompt after prompt, as one.

    Raises:
        ValueError: If they are not alike.
    """
    import torch

    first = parts[0]
    names, columns = [], [_tensors(part) for part in parts]
    for part, tensors in zip(parts, columns, strict=True):
        alike = {name: None if x is None else x.shape[1:] for name, x in tensors.items()}
        mine = {name: None if x is None else x.shape[1:] for name, x in columns[0].items()}
        if (part.seeds, part.rewards, alike) != (first.seeds, first.rewards, mine):
            raise ValueError("evaluations of different seeds, rewards, features or cameras cannot be joined")
        names += part.prompts
    joined = {n: None if columns[0][n] is None else torch.cat([c[n] for c in columns]) for n in columns[0]}
    return Evaluation(tuple(names), first.seeds, first.rewards, **joined)


@dataclass(frozen=True)
class Grid:
    """What is measured of each model."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rewards: Mapping[str, Reward]
    features: FeatureNetwork | None = None
    cameras: Cameras | None = None  # (1, V); None takes evaluate.evaluation_cameras()
    batch_size: int = 8  # samples at a time
    pictures: int = 0  # seeds of each prompt whose pictures are kept

    def blocks(self) -> list[tuple[str, ...]]:
        """The prompts, in pieces that are measured together."""
        size = max(1, max(LEAST, self.batch_size) // len(self.seeds))
        return [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)]

    def missing(self, folder: Path) -> list[int]:
        """The numbers of the blocks that are not in a folder."""
        return [i for i in range(len(self.blocks())) if not _block(folder, i).is_dir()]

    def fill(
        self,
        folder: Path,
        model: BaseModel,
        rank: int = 0,
        world: int = 1,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        """Measure the blocks that are not in a folder; of those, this process's share.

        Args:
            folder: As `begin` left it; on a disk that all processes see.
            model: The generator as it is; for the base model under `with model.reference():`.
            rank: This process.
            world: The number of processes.
            progress: As for `evaluate`, of this process's samples.
        """
        blocks = self.blocks()
        mine = [i for i in self.missing(folder) if i % world == rank]  # by number: others are writing theirs
        sizes = [len(blocks[i]) * len(self.seeds) for i in mine]
        for k, i in enumerate(mine):

            def tell(done: float, _: int, before: int = sum(sizes[:k])) -> None:
                if progress is not None:
                    progress(before + done, sum(sizes))

            arguments = (blocks[i], self.seeds, self.rewards, self.features, self.cameras)
            options = {"batch_size": self.batch_size, "pictures": self.pictures, "progress": tell}
            save(_block(folder, i), measure(model, *arguments, **options))

    def read(self, folder: Path) -> Evaluation:
        """All blocks of a folder, as one.

        Raises:
            ValueError: If one is missing, damaged, or of something else.
        """
        parts = []
        for i, prompts in enumerate(self.blocks()):
            path = _block(folder, i)
            part = load(path)
            if (part.prompts, part.seeds, part.rewards) != (prompts, self.seeds, tuple(self.rewards)):
                raise ValueError(f"{path} holds other prompts, seeds or rewards; delete {folder} to measure it again")
            parts.append(part)
        return join(parts)


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Make a set's folder, or check that the one that is there is of the same thing; clears unfinished blocks away.

    Args:
        folder: Of the set.
        about: What is measured and of which weights, for set.json.

    Raises:
        ValueError: If the folder is of something else; names what differs.
    """
    wanted, path = plain(dict(about)), folder / "set.json"
    if path.exists():
        had = read_json(path)
        differ = [name for name in sorted({*had, *wanted}) if had.get(name) != wanted.get(name)]
        if differ:
            changes = "; ".join(f"{name} was {had.get(name)!r}, now {wanted.get(name)!r}" for name in differ)
            raise ValueError(f"{folder} holds other samples: {changes}; delete it, or choose another folder")
    elif folder.exists() and any(folder.glob("block-*")):
        raise ValueError(f"{path}: missing, so nobody knows what the samples beside it are; delete {folder}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(wanted, ensure_ascii=False, indent=1) + "\n")
    for old in folder.glob(".tmp-*"):
        shutil.rmtree(old, ignore_errors=True)


def _block(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05}"


def _tensors(seen: Evaluation) -> dict[str, Tensor | None]:
    return {"scores": seen.scores, "pictures": seen.pictures, "features": seen.features}
