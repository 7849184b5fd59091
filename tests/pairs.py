"""Starts processes for tests that are about several of them.

The test runs its own file as a script, and that forks: copying pytest's process, with its threads, is not safe, and
starting each process anew would take seconds of imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from fakes import forked

import align3d

Process = Callable[[Path, int, int], None]  # of a folder, its rank, and how many there are


def alone_and_in_pair(process: Process, root: Path) -> None:
    """One process, then two at a time that know of each other."""
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).zero_grad()  # imports for seconds, once for all processes

    def start(rank: int, world: int) -> None:
        if world > 1:
            meet = {"init_method": f"file://{root}/meet", "timeout": timedelta(seconds=60)}  # no longer for a deadlock
            torch.distributed.init_process_group(rank=rank, world_size=world, **meet)
        try:
            process(root, rank, world)
        except BaseException:
            traceback.print_exc()  # a copy of a process ends without a word
            raise

    failed = forked(lambda: start(0, 1))
    child = os.fork()
    if child == 0:
        os._exit(forked(lambda: start(1, 2)))
    failed = forked(lambda: start(0, 2)) or failed
    if os.waitpid(child, 0)[1] or failed:
        sys.exit("a process failed")


def run_script(file: str, root: Path) -> None:
    """Run a test file as a script, with a folder as its argument."""
    paths = os.pathsep.join([str(Path(align3d.__file__).parent.parent), str(Path(file).parent)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, file, str(root)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
