"""Samples of a generator: every prompt with every seed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align3d.rng import Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from align3d.types import BaseModel, Scene


@dataclass(frozen=True)
class Batch:
    """Some of the samples, in order: every seed of the first prompt, then of the second, ..."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scene: Scene
    rng: Streams  # of these samples; the noise came from it, and whatever looks at them may draw from it too


def generate(
    model: BaseModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch_size: int = 8,
    progress: Callable[[float, int], None] | None = None,
) -> Iterator[Batch]:
    """Samples, batch by batch, without gradients.

    The noise of a sample depends on its prompt and seed alone: not on the other prompts, the batch size or the adapter,
    so samples of two models can be compared pair by pair.

    Args:
        model: The generator, as it is; it says how many steps it takes.
        prompts: Texts.
        seeds: Each gives one sample per prompt.
        batch_size: Samples at a time; more needs more memory.
        progress: Called while a batch is under way, with the samples done, parts of them too, and their total.

    Yields:
        A batch as soon as it is there.

    Raises:
        ValueError: If there are no prompts or seeds, the batch size is below 1, or the model refuses a prompt.
    """
    import torch

    from align3d.diffusion.sampler import sample, sampling_times

    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    if not pairs or batch_size < 1:
        raise ValueError(
            f"generate needs prompts, seeds and a batch size, got {len(prompts)}, {len(seeds)} and {batch_size}"
        )
    if hasattr(model, "check"):
        model.check(prompts)
    times = sampling_times(model)
    for first in range(0, len(pairs), batch_size):
        texts, numbers = zip(*pairs[first : first + batch_size], strict=True)
        rng = Streams(("generate",), tuple((seed, "generate", text) for text, seed in zip(texts, numbers, strict=True)))
        tell = None if progress is None else functools.partial(_part, progress, first, len(texts), len(pairs))
        with torch.no_grad():  # ends before the yield: the caller's own mode holds in the caller's loop
            scene = model.decode(sample(model, texts, times, rng, tell))
        yield Batch(texts, numbers, scene, rng)


def _part(progress: Callable[[float, int], None], done: int, batch: int, total: int, share: float) -> None:
    progress(done + batch * share, total)
