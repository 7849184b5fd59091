"""Encoding prompts into a prompt cache: what `align3d embed` does.

The prompts are put in order of length and divided into shards, each a few batches. A shard is one file that appears
whole, so that a start that ended at any moment goes on where it was; several processes take turns at the shards. What
is in a shard is decided by the prompts alone. The last step is the index. models/prompt_cache.py has the format.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any

from align3d import distributed
from align3d.files import LOCK, TEMPORARY, atomic_write, locked, replacing
from align3d.models.prompt_cache import ABOUT, FORMAT, INDEX, Mapped, PromptCache, hash_of, read_about, shard_name
from align3d.models.text import Text, check_lengths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from align3d.models.text import TextSource

SHARD = 256  # prompts: 40 MB of PixArt's captions, 700 MB of SD3's texts, which all have 333 tokens
PRECISIONS = ("float32", "bfloat16")


def order(prompts: Sequence[str]) -> list[str]:
    """The different prompts, and the empty one, by length."""
    return sorted({"", *prompts}, key=lambda prompt: (len(prompt), prompt))


def embed(
    source: TextSource,
    prompts: Sequence[str],
    out: Path,
    *,
    precision: str | None = None,
    batch_size: int = 32,
    shard: int = SHARD,
    progress: Callable[[int, int], None] | None = None,
) -> PromptCache:
    """Encode each different prompt once, and the empty one; or go on with that.

    Called by all processes, where there are several; they share the shards.

    Args:
        source: What encodes. Its `identity`, if it has one, is kept in the cache.
        prompts: Texts, in any order.
        out: New, empty, or with an earlier start of the same.
        precision: Of the stored numbers, "float32" or "bfloat16"; None is the source's own.
        batch_size: Prompts that are encoded together.
        shard: Prompts in a file.
        progress: Called with the prompts done and their number, all processes' together as far as known.

    Returns:
        The cache, on the CPU.

    Raises:
        FileExistsError: If there is something else in the folder.
        ValueError: If what is there was made of other prompts or by another encoder, or is damaged; if a prompt is
            too long; or if the source gives something that is no text.
        WriteError: If the disk is full; what was written before is kept.
    """
    if batch_size < 1 or shard < 1:
        raise ValueError(f"batch_size and shard must be at least 1, got {batch_size} and {shard}")
    check_lengths(prompts)
    plan = order(prompts)
    parts = [plan[i : i + shard] for i in range(0, len(plan), shard)]
    encoder = distributed.gather(distributed.on_first(lambda: describe(source, precision)))[0]  # hashes many GB
    about = {"format": FORMAT, "encoder": encoder, "prompts": digest(plan)}
    about |= {"count": len(plan), "shard": shard, "shards": len(parts)}
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(claimed(out, about)))
        rank, world = distributed.rank(), distributed.world()
        mine = [k for k in range(rank, len(parts), world)]
        for done, k in enumerate(mine, start=1):
            if not there(out / shard_name(k), parts[k]):
                write_shard(source, parts[k], out / shard_name(k), about["encoder"], batch_size)
            if progress is not None:
                progress(min(len(plan), done * world * shard), len(plan))
        distributed.anyone(False)  # all have come to this point
        distributed.on_first(lambda: (out / INDEX).exists() or write_index(out, parts))
    return PromptCache.open(out)


def describe(source: TextSource, precision: str | None) -> dict[str, Any]:
    """What cache.json says of a text source: its identity, sizes, and the precision of what is stored.

    Raises:
        ValueError: If it is no text source.
    """
    probe = source([""])
    if not isinstance(probe, Text):
        raise ValueError(f"{type(source).__name__} is no text source: it must give a Text, got {type(probe).__name__}")
    named = {"encoder": f"{type(source).__module__}.{type(source).__qualname__}", "precision": "float32"}
    sizes = {"tokens": probe.states.shape[1], "width": probe.states.shape[2]}
    sizes["pooled"] = 0 if probe.pooled is None else probe.pooled.shape[1]
    found = named | dict(getattr(source, "identity", {})) | sizes
    found["precision"] = precision or found["precision"]
    if found["precision"] not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {found['precision']!r}")
    return found


def digest(prompts: Sequence[str]) -> str:
    """A hash of texts in their order."""
    total = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


@contextlib.contextmanager
def claimed(out: Path, about: dict[str, Any]) -> Iterator[None]:
    """Have a cache's folder for oneself, new or with an earlier start of the same in it.

    Raises:
        FileExistsError: If there is something else in it.
        ValueError: If it is another cache, or another process is at work in it; nothing is changed.
    """
    check_folder(out, about)
    stack = contextlib.ExitStack()
    try:
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(out))
    except BlockingIOError:
        raise ValueError(f"another process is writing to {out}; wait for it to end, or choose another --out") from None
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from None
    with stack:
        for path in out.glob(f"{TEMPORARY}*"):  # of a start that was killed
            path.unlink(missing_ok=True)
        check_folder(out, about)  # again, now that nobody else can write
        if not (out / ABOUT).exists():
            atomic_write(out / ABOUT, json.dumps(about, indent=1) + "\n")
        yield


def check_folder(out: Path, about: dict[str, Any]) -> None:
    """Refuse a folder in which something else is; errors as of `claimed`."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another --out")
    if not (out / ABOUT).exists():
        if out.is_dir() and any(p.name != LOCK and not p.name.startswith(TEMPORARY) for p in out.iterdir()):
            raise FileExistsError(f"{out} is not empty, and nothing is written over; choose another --out")
        return
    have = read_about(out)
    wrong = [f"{name} {old!r} instead of {new!r}" for name, old, new in differences(have, about)]
    if wrong:
        raise ValueError(f"{out} holds a prompt cache with {', '.join(wrong)}; choose another --out")


def differences(have: dict[str, Any], want: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two descriptions differ, those of the encoder by their own names."""
    for name in dict.fromkeys([*want, *have]):
        old, new = have.get(name), want.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from ((f"{name}.{key}", a, b) for key, a, b in differences(old, new))
        elif old != new:
            yield name, old, new


def there(path: Path, prompts: Sequence[str]) -> bool:
    """Whether a shard is written already.

    Raises:
        ValueError: If the file is damaged, or has other prompts.
    """
    if not path.exists():
        return False
    if Mapped(path).told.get("prompts") != digest(prompts):
        raise ValueError(f"{path} has other prompts than it should; delete it and run align3d embed again")
    return True


def write_shard(
    source: TextSource, prompts: Sequence[str], path: Path, encoder: dict[str, Any], batch_size: int
) -> None:
    """Encode the prompts of a shard and write them: only tokens, no padding."""
    import torch

    dtype = getattr(torch, encoder["precision"])
    states, pooled, counts, checks = [], [], [], []
    for first in range(0, len(prompts), batch_size):
        some = prompts[first : first + batch_size]
        text = checked(source(some), some, encoder)
        for i in range(len(some)):
            counts.append(int(text.keep[i].sum()))
            states.append(text.states[i, : counts[-1]].to("cpu", dtype, copy=True))  # a view would hold the batch
            if text.pooled is not None:
                pooled.append(text.pooled[i].to("cpu", dtype, copy=True))
            checks.append(zlib.crc32(raw(pooled[-1]) if pooled else b"", zlib.crc32(raw(states[-1]))))
    texts, ends = packed(prompts)
    tensors = {"states": torch.cat(states), "texts": texts, "text_ends": ends}
    tensors |= {"counts": torch.tensor(counts), "checks": torch.tensor(checks)}
    tensors |= {"pooled": torch.stack(pooled)} if pooled else {}
    save(path, tensors, {"prompts": digest(prompts)})


def checked(text: Text, prompts: Sequence[str], encoder: dict[str, Any]) -> Text:
    """What a source gave, if it can be stored.

    Raises:
        ValueError: If shapes are wrong, numbers are not finite, or padding comes before tokens.
    """
    shape = (len(prompts), encoder["tokens"], encoder["width"])
    widths = 0 if text.pooled is None else text.pooled.shape[1]
    if tuple(text.states.shape) != shape or tuple(text.keep.shape) != shape[:2] or widths != encoder["pooled"]:
        raise ValueError(f"the text encoder must give states {shape}, got {tuple(text.states.shape)}")
    for i, prompt in enumerate(prompts):
        numbers = [text.states[i], *([] if text.pooled is None else [text.pooled[i]])]
        if not all(bool(part.isfinite().all()) for part in numbers):
            raise ValueError(f"the text encoder gives numbers that are not finite for prompt {prompt!r}")
        if not bool((text.keep[i, :-1] >= text.keep[i, 1:]).all()):
            raise ValueError(f"the text encoder puts padding before tokens for prompt {prompt!r}")
    return text


def raw(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def packed(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts end to end as UTF-8, and where each begins and the last ends."""
    import torch

    data = [prompt.encode("utf-8", "surrogatepass") for prompt in prompts]
    ends = torch.tensor([0, *map(len, data)]).cumsum(0)
    joined = bytearray(b"".join(data))
    return torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8), ends


def write_index(out: Path, parts: Sequence[Sequence[str]]) -> None:
    """Write where each prompt is; all shards are there."""
    import numpy as np
    import torch

    places, sizes = [], []
    for k, prompts in enumerate(parts):
        shard = Mapped(out / shard_name(k))
        counts, checks = shard.view("counts"), shard.view("checks")
        if len(counts) != len(prompts) or len(checks) != len(prompts):
            raise ValueError(f"{shard.path} is damaged; delete it and run align3d embed again")
        first = counts.cumsum() - counts
        places.append(np.stack([np.full_like(counts, k), np.arange(len(counts)), first, counts, checks], 1))
        sizes.append(shard.size)
    prompts = [prompt for part in parts for prompt in part]
    hashes = np.array([hash_of(prompt) for prompt in prompts], dtype=np.int64)
    by_hash = np.argsort(hashes, kind="stable")
    texts, ends = packed([prompts[i] for i in by_hash])
    table = {"hashes": hashes[by_hash], "places": np.concatenate(places)[by_hash], "sizes": np.array(sizes)}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in table.items()}
    save(out / INDEX, tensors | {"texts": texts, "text_ends": ends})


def save(path: Path, tensors: dict[str, Tensor], told: dict[str, str] | None = None) -> None:
    """Write tensors to a file that appears whole, readable by whom the user's other files are."""
    from safetensors.torch import save_file

    with replacing(path) as temp:
        mode = temp.stat().st_mode
        save_file(tensors, temp, metadata=told)
        temp.chmod(mode)  # the library makes files that only their owner can read
