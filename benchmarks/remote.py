"""A benchmark's subject in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


class Remote:
    """What `make(setup)` gives, an object with `facts` and `update()`, in another process.

    Args:
        make: Called in the other process; a class or function of a module.
        setup: Its argument.
    """

    def __init__(self, make: Callable[[Any], Any], setup: Any):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, setup, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.facts = self.pipe.recv()

    def update(self) -> Any:
        """What the other's `update()` returns."""
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.pipe.send(False)
        self.process.join()


def _serve(make: Callable[[Any], Any], setup: Any, pipe: Any) -> None:
    subject = make(setup)
    pipe.send(subject.facts)
    while pipe.recv():
        pipe.send(subject.update())
