"""Files that appear whole or not at all: temporary name, fsync, rename. And folders that one process has for itself.

Reading is here too where others wrote the file: JSON and lines of text, of a bounded size.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPORARY = ".tmp-"  # how the name of everything unfinished begins; the next start of a run removes it
LOCK = ".lock"  # in a folder that a process has for itself; means nothing once that process has ended
MAX_JSON = 1 << 20  # bytes of a configuration that is read; more is some other file
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # the disk's failures, not the caller's


class WriteError(OSError, ValueError):
    """The disk is full, over its quota or broken; one line that names the file."""


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Within, a failure of the disk is a WriteError about `path`; all other errors stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise WriteError(f"cannot write {path}: {os.strerror(error.errno).lower()}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder for oneself; the kernel lets go of it when the process ends, however it ends.

    On platforms and file systems without such locks, nothing is locked.

    Raises:
        BlockingIOError: If another process has it; nothing is changed.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a network's file system without locks
            pass
        mine = os.fstat(handle)
        if not path.exists() or path.stat().st_ino != mine.st_ino:  # removed by its owner after we had opened it
            raise BlockingIOError(errno.EWOULDBLOCK, "another process has just had it", str(path))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # still locked: whoever opens it from here on gets a new one
    finally:
        os.close(handle)


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
        WriteError: If the disk is full.
    """
    path = Path(path)
    temp = temporary(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected the name of a file to write")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temp.touch()
    except WriteError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    try:
        with writing(path):
            yield temp
            with temp.open("rb+") as file:
                os.fsync(file.fileno())  # else a crash may leave the new name with none of its bytes
            temp.replace(path)
            sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files go into `folder` when the block ends well; no reader finds one half written.

    Raises:
        WriteError: If the disk is full; what was in `folder` stays.
    """
    temp = temporary(folder)
    try:
        with writing(folder):
            temp.mkdir(exist_ok=True)
            yield temp
            for path in sorted(temp.iterdir()):
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
            folder.mkdir(exist_ok=True)
            for path in sorted(temp.iterdir()):
                path.replace(folder / path.name)
            sync_folder(folder)
            temp.rmdir()
    except OSError:
        shutil.rmtree(temp, ignore_errors=True)  # a full disk needs the room
        raise


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a small file whole.

    Args:
        path: The file; replaced if it exists.
        data: All of its content; text is written as UTF-8.

    Raises:
        ValueError: If its folder cannot be made or written to.
        WriteError: If the disk is full; the old file, if any, is untouched.
    """
    with replacing(path) as temp:
        temp.write_bytes(data.encode() if isinstance(data, str) else data)


def digest(path: Path, kind: Literal["blake2b", "sha256"] = "blake2b") -> str:
    """What tells a file's content from others: a hash, of 16 bytes or as hubs publish it.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        new = hashlib.sha256 if kind == "sha256" else functools.partial(hashlib.blake2b, digest_size=16)
        return hashlib.file_digest(file, new).hexdigest()


def read_json(path: Path, most: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file that others wrote.

    Args:
        path: The file.
        most: Bytes that it may have; no more are read.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is larger, or damaged.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(f"it has more than {most} bytes")
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    return value


def read_lines(path: Path, most: int) -> list[str]:
    """The lines of a UTF-8 text file; they end with a newline, a carriage return or both, and with nothing else.

    A mark of the byte order at the beginning is left out.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        ValueError: If it is larger, or no UTF-8.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path} has {size} bytes, more than a prompt file may have ({most})")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
