"""`align3d doctor`: what this machine has, and what that means for align3d."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from dataclasses import dataclass

CORE = ("torch", "numpy", "pillow", "safetensors", "diffusers", "transformers", "peft", "tyro", "rich")


@dataclass(frozen=True)
class Doctor:
    """Say what is installed and which renderer runs here; compiles the native one if need be."""


def run(options: Doctor) -> None:
    """Print one line per finding."""
    for title, rows in (
        ("versions", versions()),
        ("machine", machine()),
        ("renderers", renderers()),
        ("models", models()),
        ("extras", extras()),
    ):
        print(title)
        for name, finding in rows:
            print(f"  {name:<14} {finding}")


def versions() -> list[tuple[str, str]]:
    """align3d, Python and the core dependencies."""
    from align3d import __version__

    rows = [("align3d", __version__), ("python", platform.python_version())]
    return rows + [(name, installed(name) or "missing; pip install align3d") for name in CORE]


def machine() -> list[tuple[str, str]]:
    """Processor, threads and GPU."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = "none"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        gpu = f"{torch.cuda.get_device_name()}, {free >> 30} of {total >> 30} GiB free, CUDA {torch.version.cuda}"
    return [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("cores", f"{cores}, of which torch uses {torch.get_num_threads()}"),
        ("vectors", torch.backends.cpu.get_cpu_capability()),
        ("gpu", gpu),
    ]


def renderers() -> list[tuple[str, str]]:
    """Which backends work, how fast the native one is, and which one "auto" takes."""
    import torch

    from align3d.scenes.raster import choose_backend, native

    started = time.perf_counter()
    problem = native.problem()
    built = time.perf_counter() - started
    fine = (
        f"ready after {built:.1f} s; 4 views of 64 x 64 forward and backward: {1000 * speed('native'):.1f} ms"
        if problem is None
        else ""
    )
    auto = choose_backend("cpu") if problem is None else "torch"
    on_cuda = f"cuda: {choose_backend('cuda')}" if torch.cuda.is_available() else "no cuda"
    return [
        ("native", fine or f"cannot be had: {problem}"),
        ("torch", f"ready; 4 views of 64 x 64 forward and backward: {1000 * speed('torch'):.1f} ms"),
        ("gsplat", gsplat()),
        ("auto", f"cpu: {auto}, {on_cuda}"),
    ]


def gsplat() -> str:
    """Whether the CUDA renderer can be used."""
    import torch

    version = installed("gsplat")
    if version is None:
        return "not installed; extra `cuda`, for CUDA devices only"
    return f"{version}, ready" if torch.cuda.is_available() else f"{version}, but there is no CUDA device"


def speed(backend: str) -> float:
    """Seconds for 4 small views of 500 Gaussians, forward and backward; the best of 2."""
    import torch

    from align3d.rng import stream
    from align3d.scenes.cameras import canonical
    from align3d.scenes.raster import rasterize

    draw, N = stream("doctor"), 500
    means = 0.3 * torch.randn(1, N, 3, generator=draw)
    quats = torch.nn.functional.normalize(torch.randn(1, N, 4, generator=draw), dim=-1)
    values = means, quats, torch.full((1, N, 3), 0.02), torch.full((1, N), 0.5), torch.rand(1, N, 3, generator=draw)
    values = [x.requires_grad_() for x in values]
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        rasterize(*values, canonical(1, 64, 64), backend=backend).rgb.sum().backward()
        best = min(best, time.perf_counter() - started)
    return best


def models() -> list[tuple[str, str]]:
    """The shipped weights."""
    from align3d.models.embedded import ASSETS

    files = [path for path in ASSETS.rglob("*") if path.is_file()] if ASSETS.is_dir() else []
    size = sum(path.stat().st_size for path in files) / 1e6
    return [("embedded", f"{size:.1f} MB in {ASSETS}" if files else f"no weights in {ASSETS}; install align3d again")]


def extras() -> list[tuple[str, str]]:
    """For each extra of the package, what is installed of it."""
    wanted: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("align3d") or []
    except importlib.metadata.PackageNotFoundError:
        return [("unknown", "align3d runs from a folder in which it was not installed; pip install -e .")]
    for requirement in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        if name and extra:
            wanted.setdefault(extra[1], []).append(name[0])
    rows = []
    for extra, names in wanted.items():
        missing = [name for name in names if installed(name) is None]
        rows.append(
            (extra, f"missing {', '.join(missing)}; pip install 'align3d[{extra}]'" if missing else "installed")
        )
    return rows


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
