"""Encoded prompts on disk, read as they are needed: a prompt cache is a text source.

cache.json                  what it was made of: text encoder, precision, the hash of the prompts, number of shards
shard-00000.safetensors     some prompts, by length: the states of their tokens end to end, sizes, checksums, texts
index.safetensors           where each prompt is, by sorted hashes of the prompts; written last

All files but cache.json are mapped into memory, and their pages are let go once a row is copied: what stays in
memory does not grow with the number of prompts. `align3d.embedding` writes them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align3d.files import read_json
from align3d.models.text import Text, check_lengths, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from jaxtyping import Float
    from torch import Tensor

FORMAT = "align3d prompt cache 1"
ABOUT, INDEX = "cache.json", "index.safetensors"
MAX_HEADER = 1 << 20  # bytes
MAX_COUNT, MAX_TOKENS, MAX_WIDTH = 100_000_000, 4096, 1 << 16  # prompts, and sizes of a text; more is damage
OPEN = 64  # shards that are mapped at a time
BYTES = {"U8": 1, "BF16": 2, "F32": 4, "I64": 8}  # of a number, by the kinds that safetensors names


def hash_of(prompt: str) -> int:
    """The 8 bytes that a prompt is found by, as a signed integer."""
    digest = hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05}.safetensors"


def open_cache(folder: Path, expect: Mapping[str, Any] | None = None, device: str = "cpu"):
    """The prompt cache in a folder, of `align3d embed` or of Nabla-R2D3's public code.

    Args:
        folder: Where it is.
        expect: Fields of a text source's `identity` that the cache's must not contradict.
        device: Where its texts shall be.

    Returns:
        A text source.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not finished, is damaged, or was made by another text encoder.
    """
    if not (folder / ABOUT).exists():
        from align3d.models.prompt_cache_public import PublicCache, is_public

        if is_public(folder):
            return PublicCache.open(folder, expect, device)
    return PromptCache.open(folder, expect, device)


def check_identity(have: Mapping[str, Any], expect: Mapping[str, Any] | None, folder: Path) -> None:
    """Refuse a cache of another text encoder.

    Raises:
        ValueError: Names each field in which they differ.
    """
    wrong = [f"{k} {have[k]!r} instead of {v!r}" for k, v in (expect or {}).items() if k in have and have[k] != v]
    if wrong:
        raise ValueError(
            f"{folder} is a prompt cache for another model: {', '.join(wrong)}; make one with align3d embed"
        )


class Mapped:
    """A file of safetensors in memory's address space; nothing is read before it is asked for."""

    def __init__(self, path: Path):
        """Map a file.

        Raises:
            FileNotFoundError: If it is missing.
            ValueError: If it is cut off or damaged.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._advise("MADV_RANDOM")  # else each page brings its neighbours
            self._read_header()
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing; copy the prompt cache again") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run align3d embed again") from None

    def _read_header(self) -> None:
        import math

        length = int.from_bytes(self.map[:8], "little")
        if self.size < 8 or length > min(MAX_HEADER, self.size - 8):
            raise ValueError("it is cut off, or no safetensors file")
        header = json.loads(self.map[8 : 8 + length])
        self.told: dict[str, str] = dict(header.pop("__metadata__", {}))
        self.tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
        end = base = 8 + length
        for name, entry in header.items():
            kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, first, last)):
                raise ValueError(f"{name} has no sizes")
            if math.prod(shape) * BYTES[kind] != last - first or base + last > self.size:
                raise ValueError(f"it is cut off at {name}")
            self.tensors[name] = kind, shape, base + first
            end = max(end, base + last)
        if end != self.size:
            raise ValueError(f"it has {self.size} bytes, expected {end}")

    def let_go(self) -> None:
        """Let all pages leave this process's memory; they are read again when they are needed."""
        self._advise("MADV_DONTNEED")

    def _advise(self, what: str) -> None:
        if hasattr(self.map, "madvise") and hasattr(mmap, what):  # not on Windows
            self.map.madvise(getattr(mmap, what))

    def shape(self, name: str, axes: int, kinds: tuple[str, ...] = ("I64",)) -> tuple[int, ...]:
        """The shape of a tensor with so many axes, of numbers of one of these kinds.

        Raises:
            ValueError: If there is none.
        """
        if name not in self.tensors or len(self.tensors[name][1]) != axes or self.tensors[name][0] not in kinds:
            raise ValueError(f"{self.path} is damaged (it has no {name}); delete it and run align3d embed again")
        return self.tensors[name][1]

    def view(self, name: str, axes: int = 1) -> np.ndarray:
        """A tensor of integers, not copied."""
        import numpy as np

        shape = self.shape(name, axes, ("I64", "U8"))
        kind, _, start = self.tensors[name]
        count, dtype = int(np.prod(shape)), {"I64": "<i8", "U8": "u1"}[kind]
        return np.frombuffer(self.map, dtype, count, start).reshape(shape) if count else np.zeros(shape, dtype)

    def rows(self, name: str, first: int, count: int) -> tuple[Float[Tensor, "n D"], bytearray]:
        """Rows of a table, copied, float32; and their bytes. Their pages are let go."""
        import torch

        rows, width = self.shape(name, 2, ("F32", "BF16"))
        if not 0 <= first <= first + count <= rows:
            raise ValueError(f"{self.path} has {rows} rows of {name}, not {first + count}; copy the cache again")
        kind, _, start = self.tensors[name]
        wide = width * BYTES[kind]
        begin, end = start + first * wide, start + (first + count) * wide
        with memoryview(self.map) as whole:
            data = bytearray(whole[begin:end])
        self.let_go()
        dtype = torch.bfloat16 if kind == "BF16" else torch.float32
        table = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return table.view(count, width).float(), data


@dataclass(eq=False)
class PromptCache:
    """A finished prompt cache, as a text source."""

    folder: Path
    about: dict[str, Any]  # what cache.json has
    index: Mapped
    device: str = "cpu"  # where its texts are
    shards: OrderedDict[int, Mapped] = field(default_factory=OrderedDict)  # those that are mapped, the latest last

    @classmethod
    def open(cls, folder: Path, expect: Mapping[str, Any] | None = None, device: str = "cpu") -> PromptCache:
        """Open a cache; see `open_cache`."""
        about = read_about(folder)
        check_identity(about["encoder"], expect, folder)
        if not (folder / INDEX).exists():
            names = (re.fullmatch(r"shard-(\d{5,9})\.safetensors", path.name) for path in folder.iterdir())
            done = sum(name is not None and int(name[1]) < about["shards"] for name in names)
            raise ValueError(
                f"{folder} is not finished, {done} of {about['shards']} shards are there; "
                "run the same align3d embed again to go on"
            )
        index = Mapped(folder / INDEX)
        cache = cls(Path(folder), about, index, device)
        count, shards = about["count"], about["shards"]
        shapes = {"hashes": (count,), "places": (count, 5), "text_ends": (count + 1,), "sizes": (shards,)}
        if any(index.shape(name, len(shape)) != shape for name, shape in shapes.items()):
            raise ValueError(f"{index.path} does not belong to {ABOUT} beside it; copy the cache again")
        for k, size in enumerate(index.view("sizes").tolist()):
            path = folder / shard_name(k)
            have = path.stat().st_size if path.is_file() else None
            if have != size:
                found = "is missing" if have is None else f"has {have} bytes instead of {size}"
                raise ValueError(f"{path} {found}; copy it again, or delete it and {INDEX} and run align3d embed again")
        return cache

    def __len__(self) -> int:
        return self.about["count"]

    def __contains__(self, prompt: str) -> bool:
        return self._find(prompt) is not None

    @property
    def identity(self) -> dict[str, Any]:
        """Of the text encoder that made it."""
        return self.about["encoder"]

    @plain
    def __call__(self, prompts: Sequence[str]) -> Text:
        """The encoded prompts; no gradient.

        Raises:
            ValueError: If one is not there, or its place is damaged.
        """
        import torch

        check_lengths(prompts)
        rows = [self._row(prompt) for prompt in prompts]
        self.index.let_go()
        tokens, width = self.about["encoder"]["tokens"], self.about["encoder"]["width"]
        states, keep = torch.zeros(len(rows), tokens, width), torch.zeros(len(rows), tokens)
        for i, (found, _) in enumerate(rows):
            states[i, : len(found)] = found
            keep[i, : len(found)] = 1
        pooled = torch.cat([one for _, one in rows]) if self.about["encoder"]["pooled"] else None
        return Text(states, keep, pooled).to(self.device)

    def _find(self, prompt: str) -> int | None:
        """The row of a prompt in the index: found by its hash, and its text compared."""
        import numpy as np

        hashes, ends, texts = self.index.view("hashes"), self.index.view("text_ends"), self.index.view("texts")
        wanted, data = hash_of(prompt), prompt.encode("utf-8", "surrogatepass")
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:  # two prompts may have one hash
            first, last = int(ends[at]), int(ends[at + 1])
            if 0 <= first <= last <= len(texts) and bytes(texts[first:last]) == data:
                return at
            at += 1
        return None

    def _row(self, prompt: str) -> tuple[Float[Tensor, "n D"], Float[Tensor, "1 P"] | None]:
        """States of a prompt's tokens, and its pooled state."""
        at = self._find(prompt)
        if at is None:
            raise ValueError(
                f"prompt {prompt!r} is not in the cache {self.folder}; "
                "add it to the file and run align3d embed again, to a new folder, or leave the cache out "
                "(--model.cache None), so that the text encoder is read"
            )
        number, row, first, count, check = self.index.view("places", 2)[at].tolist()
        encoder = self.about["encoder"]
        if not (0 <= number < self.about["shards"] and 0 <= count <= encoder["tokens"]):
            raise ValueError(
                f"{self.index.path} is damaged at prompt {prompt!r}; delete it and run align3d embed again"
            )
        shard = self._shard(number)
        states, data = shard.rows("states", first, count)
        pooled, more = shard.rows("pooled", row, 1) if encoder["pooled"] else (None, b"")
        widths = states.shape[1], 0 if pooled is None else pooled.shape[1]
        if widths != (encoder["width"], encoder["pooled"]) or zlib.crc32(more, zlib.crc32(data)) != check:
            raise ValueError(
                f"{shard.path} is damaged at prompt {prompt!r}: its numbers do not have the checksum of the index; "
                f"delete it and {INDEX} and run align3d embed again"
            )
        return states, pooled

    def _shard(self, number: int) -> Mapped:
        if number not in self.shards:
            self.shards[number] = Mapped(self.folder / shard_name(number))
        self.shards.move_to_end(number)
        while len(self.shards) > OPEN:
            self.shards.popitem(last=False)
        return self.shards[number]


def read_about(folder: Path) -> dict[str, Any]:
    """What cache.json says: format, encoder, prompts, count, shard, shards.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or of another version.
    """
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no prompt cache (it has no {ABOUT}); make one with align3d embed")
    about = read_json(path)
    try:
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, expected {FORMAT!r}")
        encoder, count, shard = about["encoder"], about["count"], about["shard"]
        most = {"count": MAX_COUNT, "shard": MAX_COUNT, "shards": count // max(shard, 1) + 1}
        most_of_text = {"tokens": MAX_TOKENS, "width": MAX_WIDTH, "pooled": MAX_WIDTH}
        for values, limits in ((about, most), (encoder, most_of_text)):
            for name, limit in limits.items():
                if type(values[name]) is not int or not 0 <= values[name] <= limit:
                    raise ValueError(f"{name} {values[name]!r} instead of 0 to {limit}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
    return about
