"""Lists of prompts as they are published: plain text, DrawBench's table, COCO's captions, a library of threestudio.

.txt and others     a prompt per line; empty lines and lines that begin with # are left out
.csv, .tsv          a column Prompts (prompt, caption or text will do) and, if there is one, Category
.json               a list of texts, or of objects with a prompt (and a category); COCO's {"annotations": [...]} with
                    caption, id and image_id; {"category": ["prompt", ...], ...}; or {"class": number, ...}
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align3d.files import read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_TEXT = 1 << 24  # bytes of a prompt file; larger ones are some other file, given by mistake
MAX_JSON = 1 << 28  # the captions of COCO's training pictures have 92 MB
PROMPT = ("prompts", "prompt", "caption", "captions", "text")  # names of the column, whatever their case
CATEGORY = ("category", "categories", "challenge")
IDS = ("id", "image_id")  # of COCO: of a caption, and of its picture


@dataclass(frozen=True)
class PromptList:
    """Prompts in the order of their file, with what it says of them."""

    prompts: tuple[str, ...]
    categories: tuple[str, ...] | None = None  # of each; None where the file has none
    ids: tuple[tuple[int, ...], ...] | None = None  # numbers that each goes by; None where the file has none

    def unique(self) -> PromptList:
        """Each prompt once, the first time that it comes."""
        first: dict[str, int] = {}
        for i, prompt in enumerate(self.prompts):
            first.setdefault(prompt, i)
        return self.only(list(first.values()))

    def only(self, rows: Sequence[int]) -> PromptList:
        """Those at some places."""
        every = (self.prompts, self.categories, self.ids)
        return PromptList(*(None if of is None else tuple(of[i] for i in rows) for of in every))


def read_list(path: Path) -> PromptList:
    """The list in a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is too large, no UTF-8, damaged, of another layout, or has no prompts, or an empty one.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        found = _of_json(path)
    elif suffix in (".csv", ".tsv"):
        found = _of_table(path, "\t" if suffix == ".tsv" else ",")
    else:
        lines = [line.strip() for line in _lines(path)]
        found = PromptList(tuple(line for line in lines if line and not line.startswith("#")))
    if not found.prompts:
        raise ValueError(f"{path} has no prompts; write one per line")
    return found


def _lines(path: Path) -> list[str]:
    lines = read_lines(path, MAX_TEXT)
    if any("\0" in line for line in lines):
        raise ValueError(f"{path} has NUL bytes in it, so it is no text; save it as UTF-8")
    return lines


def _of_table(path: Path, separator: str) -> PromptList:
    """A table with a head, as DrawBench's."""
    try:
        head, *rows = [*csv.reader([line + "\n" for line in _lines(path)], delimiter=separator, strict=True)] or [[]]
    except csv.Error as error:
        raise ValueError(f"{path} is no table that can be read ({error})") from None
    names = [name.strip().lower() for name in head]
    column, kind = (next((i for i, name in enumerate(names) if name in known), None) for known in (PROMPT, CATEGORY))
    if column is None:
        raise ValueError(
            f"{path} has no column of prompts; the first line must name one Prompts, got {', '.join(head) or 'nothing'}"
        )
    rows = [(number, row) for number, row in enumerate(rows, 2) if any(cell.strip() for cell in row)]
    for number, row in rows:
        if len(row) != len(head):
            raise ValueError(
                f"{path}, row {number} has {len(row)} columns, the first one {len(head)}; quote texts with commas"
            )
    given = [{"prompt": row[column]} | ({} if kind is None else {"category": row[kind]}) for _, row in rows]
    return _of_objects(path, given)


def _of_json(path: Path) -> PromptList:
    """One of the layouts of JSON."""
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than a prompt file may have ({MAX_JSON})")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
    if isinstance(value, dict):
        annotations, classes = value.get("annotations"), all(type(number) is int for number in value.values())
        value = annotations if isinstance(annotations, list) else [*value] if classes else list(_flattened(path, value))
    if not isinstance(value, list):
        raise ValueError(f"{path} holds no list of prompts")
    return _of_objects(path, [{"prompt": item} if isinstance(item, str) else item for item in value])


def _flattened(path: Path, value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Objects of lists by category."""
    for category, texts in value.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{path} is no list of prompts: {category!r} must be a list of texts; known are lists of texts, of "
                f"objects with a prompt, by category, numbers of classes, and COCO's annotations"
            )
        yield from ({"prompt": text, "category": category} for text in texts)


def _of_objects(path: Path, items: Sequence[Any]) -> PromptList:
    """The list of objects with a prompt, and perhaps a category and numbers."""
    prompts, categories, ids = [], [], []
    for number, item in enumerate(items, 1):
        named = {str(key).lower(): value for key, value in item.items()} if isinstance(item, dict) else {}
        prompt, category = (next((named[key] for key in known if key in named), None) for known in (PROMPT, CATEGORY))
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{path}, prompt {number} of {len(items)} is {'empty' if prompt == '' else 'no text'}")
        prompts.append(" ".join(line.strip() for line in prompt.strip().splitlines()))
        categories.append(category.strip() if isinstance(category, str) else "")
        ids.append(tuple(named[key] for key in IDS if type(named.get(key)) is int))
    kept = tuple(tuple(of) if any(of) else None for of in (categories, ids))
    return PromptList(tuple(prompts), *kept)
