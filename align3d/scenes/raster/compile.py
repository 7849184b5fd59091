"""Compiles the C++ rasteriser at first use, into the user's cache folder, and loads it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch  # before the library is loaded: both then share one OpenMP runtime, and one pool of threads

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).with_name("csrc")
COMPILERS = ("g++", "clang++", "c++")
# No -ffast-math: at link time it makes the whole process flush denormals to zero. No -march=native: the cache may be
# shared between machines, so the instruction set is part of the file's name.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
THREADING = (("-fopenmp",), ("-pthread",))  # the first that compiles
ISA_FLAGS = {
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma"),
    "avx2": ("-mavx2", "-mfma"),
    "base": (),
}


def isa() -> str:
    """The widest instruction set of this machine that the code is written for."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "base"  # on arm64 this includes NEON
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "base")


def compiler() -> str | None:
    """The path of the C++ compiler that would be used, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept: the platform's cache folder for this user."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "align3d"


@functools.cache
def load(which: str | None = None) -> ctypes.CDLL:
    """The library for an instruction set (this machine's if None), compiled if it is not in the cache.

    Raises:
        RuntimeError: If there is no compiler, or it fails.
    """
    return ctypes.CDLL(str(build(which or isa())))


def build(which: str) -> Path:
    """The path of the compiled library; makes it if it is not there yet, which takes a few seconds."""
    tool = compiler()
    if tool is None:
        raise RuntimeError(f"no C++ compiler found ({', '.join(COMPILERS)}); install one, for instance g++")
    sources = sorted(SOURCE.iterdir())
    key = hashlib.blake2b(digest_size=10)
    for source in sources:
        key.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    binary = Path(tool).resolve()
    key.update(repr((str(binary), binary.stat().st_size, binary.stat().st_mtime_ns, FLAGS, ISA_FLAGS[which])).encode())
    name = f"raster-{which}-{key.hexdigest()}.so"
    with _locked(_writable_folder(), name) as target:
        if not target.exists():
            _compile(tool, ISA_FLAGS[which], target)
    return target


def _compile(tool: str, isa_flags: tuple[str, ...], target: Path) -> None:
    """Compiles beside the target and moves it into place, so that nobody ever loads half a file."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "raster.so"
        for threading in THREADING:
            command = [tool, *FLAGS, *isa_flags, *threading, str(SOURCE / "raster.cpp"), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 0:
                made.replace(target)
                return
    message = (result.stderr.strip() or f"exit status {result.returncode}").splitlines()
    raise RuntimeError(f"{tool} could not compile the rasteriser: {message[0]}")


@functools.cache
def _writable_folder() -> Path:
    """The cache folder, or one for this process alone where that cannot be written."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="align3d-"))
    return folder


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[Path]:
    """Holds a lock while a file is made, so that processes that start together compile once."""
    try:
        import fcntl
    except ImportError:  # Windows: compiling twice is harmless, the move into place is atomic
        yield folder / name
        return
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / name
