"""A run's folder: one process at a time, nothing left by a start that was refused, and a disk that is full."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import SMALL, FakeMethod, FakeModel, steady
from test_loop import train

from align3d import checkpoint, files, log
from align3d.interrupts import Terminated
from align3d.state import State

HOLD = """import pathlib, sys
from align3d.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    sys.stdin.read()
"""


def tree(out: Path) -> dict:
    return {path.relative_to(out): path.read_bytes() if path.is_file() else None for path in sorted(out.rglob("*"))}


@pytest.fixture
def holder(tmp_path):
    """Starts another process that has a folder for itself."""
    children = []

    def hold(out: Path) -> subprocess.Popen:
        paths = str(Path(files.__file__).parent.parent)
        command = [sys.executable, "-c", HOLD, str(out)]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
        )
        children.append(child)
        assert child.stdout.readline() == b"1\n"
        return child

    yield hold
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.skipif(os.name != "posix", reason="needs locks of files")
def test_a_second_process_is_refused_and_touches_nothing(tmp_path, holder):
    out = tmp_path / "run"
    train(replace(SMALL, updates=2), out=out, config={})
    child = holder(out)
    before = tree(out)
    with pytest.raises(ValueError, match=r"^another process is training in .*run; wait for it to end, or choose"):
        train(out=out, resume=True, config={})
    assert tree(out) == before
    child.kill()  # the kernel lets go
    child.wait()
    rows, _ = train(out=out, resume=True, config={})
    assert steady(rows) == steady(train()[0])
    assert not (out / files.LOCK).exists()


@pytest.mark.skipif(os.name != "posix", reason="needs locks of files")
def test_the_folder_is_locked_from_before_the_first_scoring_to_the_end(tmp_path):
    seen = []

    def look(*_):
        with pytest.raises(BlockingIOError), files.locked(tmp_path):
            pass
        seen.append(1)

    class Ready(FakeMethod):
        def prepare(self, *args):
            look()
            return super().prepare(*args)

    train(replace(SMALL, sample_every=1), method=Ready(), out=tmp_path, hooks=[look])
    assert len(seen) == 1 + 7
    with files.locked(tmp_path):
        pass


@pytest.mark.parametrize("late", [False, True])
def test_a_refused_start_leaves_no_folder(tmp_path, late):
    class Refuses(FakeMethod):
        def prepare(self, *args):
            raise ValueError("not finite")

    def refuse(done, model):
        (out / "samples" / ".tmp-1-step").mkdir(parents=True)
        raise ValueError("not finite")

    out = tmp_path / "runs" / "new" / "one"
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="not finite"):
        train(out=out, **({"hooks": [refuse]} if late else {"method": Refuses()}))
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    out.mkdir(parents=True)
    with pytest.raises(ValueError, match="not finite"):
        train(out=out, method=Refuses())
    assert list(out.iterdir()) == []  # this one was not its own
    (out / files.LOCK).touch()  # as a start leaves it that was killed
    (out / ".tmp-1-config.json").touch()
    train(out=out)


def test_what_holds_no_run_is_not_said_to_be_resumable(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError, match="holds files but no run; choose another folder"):
        train(out=tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: damaged.*; restore the file, or start anew"):
        train(out=tmp_path, resume=True)


@pytest.mark.parametrize("lost", ["all", "last"])
def test_a_run_that_lost_rows_goes_on(tmp_path, capsys, lost):
    want, _ = train()
    train(replace(SMALL, updates=4), out=tmp_path, config={})
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink() if lost == "all" else path.write_text("".join(lines[:3]))
    rows, _ = train(out=tmp_path, resume=True, config={})
    assert [row["step"] for row in rows] == ([5, 6] if lost == "all" else [1, 2, 3, 5, 6])
    assert steady(rows)[-2:] == steady(want)[-2:]
    assert "of the 4 rows before the checkpoint are lost" in capsys.readouterr().err


@pytest.fixture
def full_disk():
    """No file may grow beyond a size, as long as the test goes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, full_disk, capfd):
    with capfd.disabled():
        weight = FakeModel().adapter.weight
        state = State({"weight": weight}, torch.optim.AdamW([weight]), {})
        full_disk(100)
        with pytest.raises(files.WriteError, match=r"^cannot write .*/a\.json: file too large$"):
            files.atomic_write(tmp_path / "a.json", "x" * 200)
        with pytest.raises(files.WriteError, match=r"cannot write .*state\.safetensors: "):
            checkpoint.save(tmp_path, 2, state, 0)
        with log.Metrics(tmp_path / "m") as metrics, pytest.raises(files.WriteError, match=r"cannot write .*/m: "):
            metrics.write({"step": 1, "note": "x" * 200})  # the kernel takes a part
        with pytest.raises(files.WriteError), files.replacing_files(tmp_path / "adapter") as folder:
            (folder / "file").write_bytes(bytes(200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "m"]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), files.writing(tmp_path):
        (tmp_path / "none").read_bytes()
    with pytest.raises(files.WriteError, match="no space left on device") as caught, files.writing(tmp_path):
        raise OSError(errno.ENOSPC, "anything")
    assert isinstance(caught.value, ValueError)


def test_everything_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        train(out=tmp_path / "run")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert modes.pop("adapter_model.safetensors")  # the fake model's own
    assert set(modes.values()) == {0o640} and len(modes) >= 4


def test_sigterm_finishes_the_update_and_saves(tmp_path, capfd):
    class Preempted(FakeMethod):
        def losses(self, *args):
            signal.raise_signal(signal.SIGTERM)
            yield from super().losses(*args)

    def mine(*_):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(Terminated, match="stopped after update 1 of 6") as caught:
            train(method=Preempted(), out=tmp_path, progress=True, config={})
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143 and isinstance(caught.value, KeyboardInterrupt)
    assert "finishing this update" in capfd.readouterr().err
    rows, _ = train(out=tmp_path, resume=True, config={})
    assert steady(rows) == steady(train()[0])
