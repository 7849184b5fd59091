"""Where files come from: a record that `align3d download` keeps in the folder it writes to, source.json.

    {"files": {PATH: {"repository": REPOSITORY, "bytes": SIZE, "sha256": HASH}}}

Paths are those of the repository, below the folder. Files of more than `HASHED` bytes have no hash, as it would be
read anew at each start. What has no record is not checked.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from align3d.files import atomic_write, digest, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

RECORD = "source.json"
HASHED = 1 << 26  # bytes of the largest file that is hashed


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Path -> what is known of it; nothing where there is no record.

    Raises:
        ValueError: If the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    files = read_json(path).get("files")
    kinds = {"repository": str, "bytes": int, "sha256": str | None}
    if not isinstance(files, dict) or not all(
        isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in kinds.items())
        for one in files.values()
    ):
        raise ValueError(f"{path} is damaged, or no record of `align3d download`; delete it, then nothing is checked")
    return files


def write_record(folder: Path, repository: str, path: str) -> None:
    """Add a file of a repository, which lies in the folder as it lies there, to its record."""
    files, size = read_record(folder), (folder / path).stat().st_size
    hashed = digest(folder / path, "sha256") if size <= HASHED else None
    files[path] = {"repository": repository, "bytes": size, "sha256": hashed}
    atomic_write(folder / RECORD, json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


def require_free(folder: Path, repository: str, paths: Iterable[str]) -> None:
    """Refuse to put files of a repository where those of another are.

    Raises:
        ValueError: Names one, and both repositories.
    """
    files = read_record(folder)
    for path in paths:
        other = files[path]["repository"] if path in files else repository
        if other != repository and (folder / path).is_file():
            raise ValueError(
                f"{folder / path} is there already, of {other}, and that of {repository} would take its place; "
                "give --out another folder"
            )


def check_source(path: Path, sources: Mapping[str, Sequence[str]]) -> None:
    """Refuse a file that was fetched from elsewhere, or is not the one that was fetched; without a record, none.

    Args:
        path: The file; the record is in its folder, or in the one above.
        sources: Repository -> patterns of the files that it may be.

    Raises:
        ValueError: Names what it is and what it should be.
    """
    whole = path.absolute()  # not resolved: the record is where the link is
    for folder in (whole.parent, whole.parent.parent):
        name = whole.relative_to(folder).as_posix()
        found = read_record(folder).get(name)
        if found is not None:
            break
    else:
        return
    repository = found["repository"]
    if not any(fnmatch(name, pattern) for pattern in sources.get(repository, ())):
        wanted = ", ".join(f"{repo}: {' '.join(patterns)}" for repo, patterns in sources.items())
        raise ValueError(f"{path} is {name} of {repository}, as {folder / RECORD} has it; this model takes {wanted}")
    size = path.stat().st_size
    if size != found["bytes"] or (found["sha256"] is not None and digest(path, "sha256") != found["sha256"]):
        other = "other bytes" if size == found["bytes"] else f"{size} bytes instead of {found['bytes']}"
        raise ValueError(
            f"{path} is not {name} of {repository}, which was fetched to {folder}: it has {other}; put that back, or "
            f"delete {folder / RECORD} if this one is meant"
        )
