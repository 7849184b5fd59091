"""`align3d download`: the files of a published model or reward, and nothing else of their repositories.

A part says what it needs: `sources`, what -> repository of the hub, or github.com/OWNER/NAME -> patterns of its files.
Where it has `convert(folder)`, which writes them in a better format, that is called at the end. What came from where
is kept beside the files (pretrained/fetched.py).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from align3d.files import replacing
from align3d.pretrained.fetched import require_free, write_record
from align3d.rewards.published import GITHUB, address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HALF = ".fp16"  # in the names of files that hold 16-bit numbers
TIMEOUT = 20.0  # seconds to wait for a word from the hub
MAX_RAW = 1 << 28  # bytes of a file of GitHub's


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch the weights of a published model or reward, and say licence and size; goes on where it was interrupted."""

    name: Annotated[str, tyro.conf.Positional]  # such as diffsplat-pas or hpsv2.1; `align3d list` shows them
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
    from align3d.commands.parts import load_part, table

    kinds = ("model", "prior", "reward")
    kind = next((kind for kind in kinds if options.name in table(kind)), "part" if ":" in options.name else None)
    if kind is None:
        known = [n for k in kinds for n in table(k) if hasattr(load_part(k, n), "sources")]
        raise ValueError(f"{options.name!r} is no model, prior or reward to download; known: {', '.join(known)}")
    part = load_part("reward" if kind == "part" else kind, options.name)
    sources = getattr(part, "sources", None)
    if sources is None:
        raise ValueError(f"{kind} {options.name!r} has nothing to download; `align3d list {kind}s` shows what there is")
    if options.what != "all" and options.what not in sources:
        raise ValueError(f"{kind} {options.name!r} has no {options.what} of its own; leave out --what")
    asked_for = sources if options.what == "all" else (options.what,)
    asked: dict[str, tuple[str, ...]] = {}
    for repo, patterns in (item for what in asked_for for item in sources[what].items()):
        asked[repo] = (*asked.get(repo, ()), *patterns)
    wanted = list(look_up(asked, options.out))
    for one in wanted:
        require_free(options.out, one.repo, one.files)
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
            write_record(options.out, one.repo, path)  # now, as the next one may be interrupted
    if (made := getattr(part, "convert", lambda _: None)(options.out)) is not None:
        print(f"converted: {made}; the file that it was made of is needed no more", flush=True)
    flag = "text" if options.what == "text" else "weights"
    print(f"written: {options.out}; use it as --{kind} {options.name} --{kind}.{flag} {options.out}", flush=True)


def look_up(asked: dict[str, Sequence[str]], out: Path) -> Iterator[Wanted]:
    """Which files there are, how large they are, and under which licence.

    Raises:
        ValueError: If the hub cannot be reached or does not have them; says what to put where by hand.
    """
    from huggingface_hub import HfApi

    for repo, patterns in asked.items():
        if repo.startswith(GITHUB):
            yield Wanted(repo, f"see {address(repo)}", {path: _size(repo, path, asked, out) for path in patterns})
            continue
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
        if repo.startswith(GITHUB):
            _fetch_raw(repo, path, out)
            return
        hf_hub_download(repo, path, local_dir=out)
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # the disk's
            raise
        raise ValueError(unreachable(error, asked, out)) from None
    except Exception as error:
        raise ValueError(unreachable(error, asked, out)) from None


def _raw(repo: str, path: str) -> str:
    """Where a file of GitHub's is."""
    from urllib.parse import quote

    return f"https://raw.githubusercontent.com/{repo.removeprefix(GITHUB)}/HEAD/{quote(path)}"


def _size(repo: str, path: str, asked: dict[str, Sequence[str]], out: Path) -> int:
    """Bytes of a file of GitHub's; 0 if it is not told."""
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(_raw(repo, path), method="HEAD"), timeout=TIMEOUT) as answer:
            return int(answer.headers.get("Content-Length") or 0)
    except Exception as error:
        raise ValueError(unreachable(error, asked, out)) from None


def _fetch_raw(repo: str, path: str, out: Path) -> None:
    """A file of GitHub's, which are small; what is there already stays."""
    from urllib.request import urlopen

    if (out / path).is_file():
        return
    with urlopen(_raw(repo, path), timeout=TIMEOUT) as answer:
        data, told = answer.read(MAX_RAW + 1), answer.headers.get("Content-Length")
    if len(data) > MAX_RAW or (told is not None and len(data) != int(told)):  # a body that ends early is no error there
        raise ValueError(f"{path} came with {len(data)} bytes, expected {told or f'{MAX_RAW} at most'}; try again")
    with replacing(out / path) as temporary:
        temporary.write_bytes(data)


def unreachable(error: Exception, asked: dict[str, Any], out: Path) -> str:
    """Why a file cannot be had, and what to do instead."""
    said = " ".join(str(error).split())[:160] or type(error).__name__
    kind = type(error).__name__
    if "Gated" in kind or "401" in said or "403" in said:
        return f"the hub wants an account that has accepted the licence ({said}); log in with `hf auth login`"
    where = "; ".join(f"{address(repo)}: {', '.join(patterns)}" for repo, patterns in asked.items())
    hand = f"put these files into {out} by hand, as they lie there: {where}"
    return f"the files cannot be had ({kind}: {said}); {hand}"
