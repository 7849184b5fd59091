"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPORARY = ".tmp-"  # how the name of everything unfinished begins; the next start of a run removes it


def temporary(path: Path) -> Path:
    """The name under which `path` is written: same folder and extension, and no other process's."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut; does nothing where folders cannot be synced."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` when the block ends well.

    When the block fails, the temporary file is removed and an older `path` stays as it was.

    Args:
        path: The file to be written; missing parent folders are made.

    Yields:
        Where to write.

    Raises:
        ValueError: If `path` is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    temp = temporary(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.touch()
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    try:
        yield temp
        with temp.open("rb+") as file:
            os.fsync(file.fileno())  # else a crash may leave the new name with none of its bytes
        temp.replace(path)
        sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a small file whole.

    Args:
        path: The file; replaced if it exists.
        data: All of its content; text is written as UTF-8.

    Raises:
        ValueError: If its folder cannot be made or written to.
        OSError: If the disk refuses; the old file, if any, is untouched.
    """
    with replacing(path) as temp:
        temp.write_bytes(data.encode() if isinstance(data, str) else data)
