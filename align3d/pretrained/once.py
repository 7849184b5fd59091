"""Files that are read once, and again when they have changed."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = (".json", ".safetensors", ".bin", ".pt", ".pth", "vocab.txt", "merges.txt")  # ends of names of files that do


def read_once(maxsize: int, *parts: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function of a file, a folder or something with a `folder`, whose results are kept.

    A result is that of the same place, wherever the program has gone since, and of the same files: one with another
    size or time has it made anew, in the place of the old one. What is kept has no gradient and is fit for training,
    even if inference mode was on when it was read. Errors are not kept.

    Args:
        maxsize: Results that are kept; of more, that which nobody has asked for the longest goes.
        *parts: Folders in the folder whose files count too.

    Returns:
        A decorator. What it makes has `cache_clear()`, and takes no keywords.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kept: OrderedDict[Any, tuple[Any, Any]] = OrderedDict()

        @functools.wraps(function)
        def call(place: Any, *rest: Any) -> Any:
            import torch

            if hasattr(place, "folder"):
                place = replace(place, folder=place.folder.absolute())
            else:
                place = Path(place).absolute()
            key, now = (place, *rest), state_of(getattr(place, "folder", place), *parts)
            then, value = kept.get(key, (None, None))
            if then != now:
                kept.pop(key, None)  # two of them may not fit into memory
                with torch.inference_mode(False), torch.no_grad():
                    value = function(place, *rest)
                kept[key] = now, value
                while len(kept) > maxsize:
                    kept.popitem(last=False)
            else:
                kept.move_to_end(key)
            return value

        call.cache_clear = kept.clear
        return call

    return decorate


def state_of(place: Path, *parts: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a file, or of those of a folder (and of folders in it) that may be a network's."""
    if not place.is_dir():
        folders, files = [], [place] if place.is_file() else []
    else:
        folders, files = [place, *(place / part for part in parts)], []
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as found:
                files += [entry for entry in found if entry.name.endswith(COUNT) and entry.is_file()]
    states = ((os.fspath(file), file.stat()) for file in files)
    return tuple(sorted((name, state.st_size, state.st_mtime_ns) for name, state in states))
