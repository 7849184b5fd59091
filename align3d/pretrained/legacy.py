"""State dicts in files of `torch.save` (.pt, .pth, .bin); no code of theirs is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


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
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive raises whatever its first wrong byte leads to
        said = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]  # without advice to trust it
        if any(words in said.lower() for words in ("unsupported global", "unsupported class", "allowed global")):
            raise ValueError(
                f"{path} holds more than tensors, which could run code when read, or is damaged; only plain tensors "
                "are read, as in the published file: copy it again"
            ) from None
        raise ValueError(f"{path} is damaged ({said[:120] or type(error).__name__}); copy it again") from None


def is_whole(tensor: Tensor, path: Path) -> bool:
    """Whether all numbers of a tensor are in its file, one after the other.

    A view could name the same ones again and again, and take any amount of memory once it is copied.
    """
    import torch

    dense = tensor.layout == torch.strided and tensor.is_contiguous()
    return dense and tensor.numel() * tensor.element_size() <= path.stat().st_size


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
