"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name `path` when the block ends well.

    The temporary name keeps the extension (writers choose their format by it) and holds the process number (two
    processes never share it). When the block fails, the temporary file is removed and an older `path` stays as it was.

    Args:
        path: The file to be written; missing parent folders are made.

    Yields:
        Where to write.

    Raises:
        ValueError: If `path` is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a crash may leave the new name with none of its bytes
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
