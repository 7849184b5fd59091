"""The processes of one run look after each other: when one ends, all end soon, and one of them says why.

A process that waits in torch.distributed for one that has died, or that failed and went, learns of it late or never;
and a timeout short enough to notice would end runs whose first process is only busy with pictures. So each process has
a thread that shows every half second, in the store that the launcher keeps, that it lives; that watches the next
process; and that looks for a note of a failure. A process that does not hear such a note in a few seconds, because it
waits for the one that failed, is ended by its thread. Nothing is lost by that: the run's folder is at every moment
such that it can be resumed.

On the way out all leave notes, the lowest rank whose failure is no echo of another's speaks, and all wait for each
other, so that a launcher, which kills all when one ends badly, does not cut anyone short.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.distributed import Store

JOIN = 600.0  # seconds for all processes to start
BEAT = 0.5  # seconds between signs of life
SILENT = 60.0  # seconds without one after which a process counts as dead: swapping machines are slow
GRACE = 5.0  # seconds for a process to end by itself when another has failed
SETTLE = 3.0  # seconds for the notes of others to come in, before someone speaks; several beats
LINGER = 10.0  # seconds that a failed process waits for the others to end

Kind = Literal["together", "fault", "echo"]


@dataclass(frozen=True)
class Ending:
    """How a process ends: at the same point as all others, by a fault of its own, or because of another or a signal."""

    code: int  # exit code
    text: str  # what to say, if this process is the one to speak; "" is nothing
    kind: Kind


class Peers:
    """This process among the others of a run; begins to show signs of life.

    Args:
        store: Where all can write and read.
        rank: The number of this process.
        world: How many there are.
        host: The rank that keeps the store; None if the launcher does.
    """

    def __init__(self, store: Store, rank: int, world: int, host: int | None = None):
        self.store, self.rank, self.world, self.host = store, rank, world, host
        self.remedy: Callable[[], str] = lambda: ""  # how to go on; said when a process has died without a word
        self.leaving, self.done = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.watch, args=(store.clone(),), daemon=True)
        self.thread.start()

    @classmethod
    def join(cls, environ: Mapping[str, str]) -> Peers:
        """Meet the others through the store whose address torchrun, or a launcher like it, gave.

        Raises:
            ValueError: If the environment does not say where, or not all processes come.
        """
        from torch.distributed import DistError, rendezvous

        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
            if not environ.get(name, "").isdecimal():
                raise ValueError(f"{name} must be a number, got {environ.get(name)!r}; start with torchrun")
        try:
            store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=JOIN)))
        except (DistError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the {environ['WORLD_SIZE']} processes did not find each other: {reason}") from None
        return cls(store, rank, world, None if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0)

    def watch(self, store: Store) -> None:
        """Show that this process lives, watch the next one, and see to it that this one ends when another has failed.

        Args:
            store: Of this thread alone: a store that waits for something lets nobody else in.
        """
        beat, seen, since, failed = 0, b"", time.monotonic(), None
        neighbour = (self.rank + 1) % self.world
        while not self.done.wait(BEAT):
            now, beat = time.monotonic(), beat + 1
            try:
                store.set(f"align3d/beat/{self.rank}", str(beat))
                value = read(store, f"align3d/beat/{neighbour}")
                if value != seen or read(store, f"align3d/left/{neighbour}"):
                    seen, since = value, now
                if now - since > (SILENT if seen else JOIN):  # a process that has yet to load its packages is slow
                    store.add("align3d/failed", 1)
                bad = store.add("align3d/failed", 0) > 0
            except RuntimeError:  # whoever kept the store has ended
                bad = True
            failed = (failed or now) if bad else None
            if failed and now - failed > GRACE and not self.leaving.is_set():
                code = self.leave(Ending(1, "no word from the other processes", "echo"), store)
                os._exit(code)  # the main thread waits for what does not come

    def leave(self, ending: Ending, store: Store | None = None, between: Callable[[], None] = lambda: None) -> int:
        """End together with the others; one of all processes says why. Ctrl-C and SIGTERM are ignored from then on.

        Args:
            ending: How this process ends.
            store: Of the thread that calls; None is the main thread's.
            between: Called when the others know, before waiting for them.

        Returns:
            The exit code: of the failure that was told, if another process's was.
        """
        self.leaving.set()
        if threading.current_thread() is threading.main_thread():  # from here on it is a matter of seconds
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            code = self.account(ending, store or self.store, between)
        except RuntimeError:  # no store, so no notes: those with something of their own to say say it
            code, speaks = ending.code, self.rank == (0 if self.host is None else 1)
            if ending.kind == "fault" or (ending.kind == "together" and code and speaks):
                say(ending.text)
            elif ending.kind == "echo" or self.host == 0:  # the first, who keeps the store to the end, has died
                code = code or 1
                if speaks:
                    say(self.gone([0] if self.host == 0 else []))
        self.done.set()
        if threading.current_thread() is not self.thread:
            self.thread.join()
        return code

    def account(self, ending: Ending, store: Store, between: Callable[[], None]) -> int:
        """Leave a note, read the others', speak if it is this process's turn, wait for all to have gone."""
        began, pulse = time.monotonic(), self.pulse(store)
        store.set(f"align3d/end/{self.rank}", f"{ending.kind} {ending.code}")
        dead: list[int] = []
        if ending.kind == "together":
            self.wait(store)
            notes = self.notes(store)
        else:
            store.add("align3d/failed", 1)
            between()
            notes = self.settle(store, began)
        faults = [rank for rank, (kind, _) in sorted(notes.items()) if kind == "fault"]
        code, text = ending.code, ending.text
        if faults:
            code = notes[faults[0]][1]
        elif ending.kind == "echo":
            later = self.pulse(store)
            dead = [rank for rank in range(self.world) if rank not in notes and later[rank] == pulse[rank]]
            code, text = (1, self.gone(dead)) if dead else (code, text)
        speakers = faults or [rank for rank, (kind, _) in notes.items() if kind == "echo"] or notes
        if self.rank == min(speakers) and store.add("align3d/told", 1) == 1:
            say(text)
        store.set(f"align3d/left/{self.rank}", "left")
        last = time.monotonic() + LINGER if ending.kind != "together" or self.rank == self.host else 0.0
        while time.monotonic() < last and len(self.present(store, "left")) + len(dead) < self.world:
            time.sleep(0.05)
        return code

    def settle(self, store: Store, began: float) -> dict[int, tuple[str, int]]:
        """The notes, when they are enough to know who speaks: the lowest rank with a fault, if it comes in time."""
        while True:
            notes = self.notes(store)
            first = notes.get(0, ("", 0))[0] == "fault"
            if first or len(notes) == self.world or time.monotonic() - began > SETTLE:
                return notes
            time.sleep(0.05)

    def wait(self, store: Store) -> None:
        """Until all processes are here, or one has failed; the first may still be writing a report."""
        while len(self.present(store, "end")) < self.world:
            if store.add("align3d/failed", 0) > 0:
                self.settle(store, time.monotonic())
                return
            time.sleep(0.05)

    def notes(self, store: Store) -> dict[int, tuple[str, int]]:
        """Rank to kind and exit code, of the processes that have ended."""
        found = {rank: store.get(f"align3d/end/{rank}").decode().split() for rank in self.present(store, "end")}
        return {rank: (kind, int(code)) for rank, (kind, code) in found.items()}

    def present(self, store: Store, what: str) -> list[int]:
        """The ranks that have left a note."""
        return [rank for rank in range(self.world) if store.check([f"align3d/{what}/{rank}"])]

    def pulse(self, store: Store) -> list[bytes]:
        """The last sign of life of each process."""
        return [read(store, f"align3d/beat/{rank}") for rank in range(self.world)]

    def gone(self, dead: list[int]) -> str:
        """The line about processes that have died without a note."""
        who = f"rank{'s' if len(dead) > 1 else ''} {', '.join(map(str, dead))} of {self.world}"
        why = "killed from outside, by the system for want of memory, or by a crash of its own"
        return f"align3d: error: {who if dead else 'the launcher'} died without a word ({why}){self.remedy()}"


def read(store: Store, key: str) -> bytes:
    """A value; empty if nobody has set it."""
    return store.get(key) if store.check([key]) else b""


def say(text: str) -> None:
    """Write to standard error, all at once."""
    if text:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            os.write(2, f"{text}\n".encode())
