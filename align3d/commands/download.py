"""`align3d download`: the files of a published model, and nothing else of their repositories."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HALF = ".fp16"  # in the names of files that hold 16-bit numbers
TIMEOUT = 20.0  # seconds to wait for a word from the hub


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch the weights of a published model, and say their licence and size; goes on where it was interrupted."""

    model: Annotated[str, tyro.conf.Positional]  # such as diffsplat-pas; `align3d list models` shows them
    out: Path  # folder to write to; what is there already is not fetched again
    what: Literal["all", "weights", "text"] = "all"  # text = the text encoder, for `align3d embed`
    yes: bool = False  # fetch without a look at licence and size first, which only says them otherwise


@dataclass(frozen=True)
class Wanted:
    """Files of one repository."""

    repo: str
    licence: str
    files: dict[str, int]  # path -> bytes


def run(options: Download) -> None:
    """Look up, say what it is, fetch."""
    from align3d.commands.flags import load_part

    part = load_part("model", options.model)
    sources = getattr(part, "sources", None)
    if sources is None:
        raise ValueError(f"model {options.model!r} has nothing to download; `align3d list models` shows what there is")
    kinds = ("weights", "text") if options.what == "all" else (options.what,)
    asked = {repo: patterns for kind in kinds for repo, patterns in sources[kind].items()}
    wanted = list(look_up(asked, options.out))
    for one in wanted:
        size = sum(one.files.values()) / 1e9
        print(f"{one.repo}: {len(one.files)} files, {size:.2f} GB, licence: {one.licence}", flush=True)
    if not options.yes:
        print("align3d: the same command with --yes fetches them; by that you accept the licences", file=sys.stderr)
        return
    for one in wanted:
        for path in one.files:
            print(f"{one.repo}/{path}", flush=True)
            fetch(one.repo, path, options.out, asked)
    print(f"written: {options.out}; use it as --model {options.model} --model.weights {options.out}", flush=True)


def look_up(asked: dict[str, Sequence[str]], out: Path) -> Iterator[Wanted]:
    """Which files there are, how large they are, and under which licence.

    Raises:
        ValueError: If the hub cannot be reached or does not have them; says what to put where by hand.
    """
    from huggingface_hub import HfApi

    for repo, patterns in asked.items():
        try:
            info = HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT)
        except Exception as error:  # of many libraries, below and above the hub's own
            raise ValueError(unreachable(error, asked, out)) from None
        files = {str(file.rfilename): int(file.size or 0) for file in info.siblings or ()}
        chosen = choose(files, patterns)
        if not chosen:
            raise ValueError(f"{repo} has no files {', '.join(patterns)}; it may have been changed since")
        licence = (info.card_data or {}).get("license") or "not stated"
        yield Wanted(repo, str(licence), chosen)


def choose(files: dict[str, int], patterns: Sequence[str]) -> dict[str, int]:
    """The files that match a pattern; of checkpoints the last one, of weights those in 16 bits where there are such."""
    found: dict[str, int] = {}
    for pattern in patterns:
        some = sorted(path for path in files if fnmatch(path, pattern))
        head = pattern.partition("checkpoints/*/")[0]
        steps = sorted({path.removeprefix(f"{head}checkpoints/").partition("/")[0] for path in some})
        last = f"{head}checkpoints/{steps[-1]}/" if "checkpoints/*/" in pattern and steps else ""
        found |= {path: files[path] for path in some if path.startswith(last)}
    halves = {path.rpartition("/")[0] for path in found if HALF in path}  # folders that hold the same in 16 bits
    weights = {path for path in found if path.endswith((".safetensors", ".index.json")) and HALF not in path}
    return {p: size for p, size in found.items() if p not in weights or p.rpartition("/")[0] not in halves}


def fetch(repo: str, path: str, out: Path, asked: dict[str, Sequence[str]]) -> None:
    """One file; what is there already stays, half a file is completed.

    Raises:
        ValueError: If it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repo, path, local_dir=out)
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # the disk's
            raise
        raise ValueError(unreachable(error, asked, out)) from None
    except Exception as error:
        raise ValueError(unreachable(error, asked, out)) from None


def unreachable(error: Exception, asked: dict[str, Any], out: Path) -> str:
    """Why a file cannot be had, and what to do instead."""
    said = " ".join(str(error).split())[:160] or type(error).__name__
    kind = type(error).__name__
    if "Gated" in kind or "401" in said or "403" in said:
        return f"the hub wants an account that has accepted the licence ({said}); log in with `hf auth login`"
    where = "; ".join(f"https://huggingface.co/{repo}: {', '.join(patterns)}" for repo, patterns in asked.items())
    hand = f"put these files into {out} by hand, as they lie there: {where}"
    return f"huggingface.co cannot be used ({kind}: {said}); {hand}"
