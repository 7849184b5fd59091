"""State dicts in files of `torch.save` (.pt, .pth, .bin); no code of theirs is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align3d.files import replacing
from align3d.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Reader = Callable[[Path], dict[str, Tensor]]  # from a published file to tensors under the names of the network


def load_legacy(path: Path) -> Any:
    """What a file of `torch.save` holds, tensors mapped into memory where its format allows it; no code of it is run.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, or holds something other than tensors and plain containers.
    """
    import zipfile

    import torch

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    for begin, what in ((b"version https://git-lfs", "a pointer of Git LFS"), (b"<", "a web page")):
        if head.startswith(begin):
            raise ValueError(f"{path} is {what}, not the file itself; fetch that in its place")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises whatever its first wrong byte leads to
        said = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]  # without advice to trust it
        said = said.partition(" Check the documentation")[0]
        if any(words in said.lower() for words in ("unsupported global", "unsupported class", "allowed global")):
            raise ValueError(
                f"{path} holds more than tensors, which could run code when read, or is damaged; only plain tensors "
                "are read, as in the published file: copy it again"
            ) from None
        raise ValueError(f"{path} is damaged ({said[:120] or type(error).__name__}); copy it again") from None


def is_whole(tensor: Tensor, path: Path) -> bool:
    """Whether all numbers of a tensor are in its file, each once, in whichever order of the axes.

    A view could name the same ones again and again, and take any amount of memory once it is copied.
    """
    import torch

    if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() * tensor.element_size() > path.stat().st_size:
        return False
    last = 0  # how far the axes so far reach; the next one has to step over it, if no number is named twice
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)) if tensor.numel() else ():
        if size > 1 and stride <= last:
            return False
        last += stride * (size - 1)
    return True


def read_legacy(path: Path, inner: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file, which stay on the disk until they are looked at, where its format allows it.

    Args:
        path: The file.
        inner: Key of the state dict in what the file holds; None = it holds nothing else.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, holds something other than tensors and plain containers, or no state dict
            whose numbers are all in the file.
    """
    import torch

    state = load_legacy(path)
    if inner is not None:
        state = state.get(inner) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        where = f" under {inner!r}" if inner is not None else ""
        raise ValueError(f"{path} has no tensors by name{where}; it is no file of this network's weights")
    loose = [str(key) for key, value in state.items() if not is_whole(value, path)]
    if loose:
        raise ValueError(f"{path} is damaged, or no published file: it does not hold all numbers of {loose[0]}")
    return {str(key): value for key, value in state.items()}


def converted_or_published(folder: Path, name: str, read: Reader) -> Weights:
    """The weights of NAME.safetensors, which `convert` wrote, if it is there; else those of the published NAME.pt.

    Raises:
        FileNotFoundError, ValueError: As `read` does.
    """
    safe, published = folder / f"{name}.safetensors", folder / f"{name}.pt"
    return Weights({"": safe}) if safe.is_file() else Weights({"": published}, read(published))


def convert(folder: Path, name: str, read: Reader, check: Callable[[Path], Any]) -> Path | None:
    """Write the weights of the published NAME.pt as safetensors beside it, in their precision.

    Args:
        folder: With the published file.
        name: Of both files, without an ending.
        read: What is written.
        check: Given the folder, raises an error if the published file does not fit.

    Returns:
        The new file; None if there is one already, or nothing to convert.

    Raises:
        ValueError: If the published file is damaged or does not fit.
    """
    from safetensors.torch import save_file

    target, published = folder / f"{name}.safetensors", folder / f"{name}.pt"
    if target.is_file() or not published.is_file():
        return None
    check(folder)
    state = {key: value.contiguous().clone() for key, value in read(published).items()}
    with replacing(target) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    return target
