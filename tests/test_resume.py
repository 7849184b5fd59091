"""A run that is killed, at any moment, and resumed gives the same bits as one that is not.

The runs happen in copies of a small process of their own (this file, run as a script): copying pytest's, with its
threads, is not safe.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fakes import PROMPTS, SMALL, FakeMethod, FakeModel, FakeScore, forked, steady, weights

from align3d import checkpoint
from align3d.log import read_metrics
from align3d.loop import Loop, fit

LOOP = replace(SMALL, updates=4, keep=1, sample_every=2)
WRITING = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}  # audited events that change a folder


def run(out: Path, resume: bool, updates: int = LOOP.updates) -> None:
    """One start of the run, in this process."""

    def picture(done: int, model: FakeModel) -> None:
        (out / f"picture-{done}").write_text(json.dumps(weights(model)))

    train(replace(LOOP, updates=updates), out=out, resume=resume, hooks=[picture])


def train(loop: Loop, **options: object) -> None:
    """The same run every time."""
    fit(FakeModel(), FakeMethod(), FakeScore(), PROMPTS, loop, config={"loop": asdict(loop)}, progress=False, **options)


def result(out: Path) -> dict:
    """All that a run leaves, less what depends on the clock."""
    rows = steady(read_metrics(out / "metrics.jsonl"))
    files = {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    first = "checkpoints/step-000000/state.json"  # says how long the preparations took
    if first in files:
        about = json.loads(files[first])
        files[first] = {k: v for k, v in about.items() if k != "before"} | {
            "evaluations": about["before"]["evaluations"]
        }
    return {"rows": rows, "files": {k: v for k, v in files.items() if k not in ("metrics.jsonl", "config.json")}}


def die_at(event: int, out: Path, half: bool) -> None:
    """Have this process kill itself just before its n-th change to `out`; if `half`, with a file half written."""
    count = 0

    def watch(name: str, args: tuple) -> None:
        nonlocal count
        writes = name in WRITING or (name == "open" and len(args) > 2 and args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and str(out) in str(args[0]):
            count += 1
            if count == event:
                if half and name == "os.rename" and Path(args[0]).is_file():
                    os.truncate(args[0], Path(args[0]).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def start(out: Path, event: int = 0, half: bool = False, updates: int = LOOP.updates) -> int:
    """One start in a copy of this process, resumed if there is a folder; its exit status."""

    def action() -> None:
        resume = out.exists()
        if event:
            die_at(event, out, half)
        run(out, resume, updates)

    return forked(action)


def kill_everywhere(root: Path) -> None:
    """Kill a run before each of its changes to the disk in turn, at times the resumed one too, then let it finish."""
    start(root / "whole")
    want, event, died = result(root / "whole"), 0, -signal.SIGKILL
    while died == -signal.SIGKILL:
        event += 1
        out = root / f"event-{event}"
        died = start(out, event, half=bool(event % 2))
        if event % 3 == 0:
            start(out, 1 + event % 7)
        if start(out) or result(out) != want:
            print(f"killed at change {event}: not the same")
    print(f"{event - 1} places")


def kill_any_time(root: Path) -> None:
    """Kill a longer run again and again, whenever, until it gets to its end."""
    start(root / "whole", updates=80)
    kills, out, rng, patience = 0, root / "killed", random.Random(0), 0.03
    while True:
        child = os.fork()
        if child == 0:
            run(out, out.exists(), updates=80)
            os._exit(0)
        time.sleep(patience * (1 + 2 * rng.random()))
        patience *= 1.1  # on a slow machine it would never get to the end
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        kills += status == -signal.SIGKILL
        if status != -signal.SIGKILL:
            break
    print("same" if result(out) == result(root / "whole") else "not the same", kills)


def script(what: str, root: Path) -> list[str]:
    """Run this file as a script; the lines that it prints."""
    paths = os.pathsep.join([str(Path(checkpoint.__file__).parent.parent), str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, what, str(root)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert not done.returncode and not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_any_change_on_disk_and_resumed_gives_the_same_bits(tmp_path):
    (line,) = script("kill_everywhere", tmp_path)
    assert int(line.split()[0]) > 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_time_and_resumed_gives_the_same_bits(tmp_path):
    (line,) = script("kill_any_time", tmp_path)
    words = line.rsplit(maxsplit=1)
    assert words[0] == "same" and int(words[1]) >= 2


def test_a_longer_run_goes_on_where_the_shorter_stopped(tmp_path):
    run(tmp_path / "whole", False, updates=7)
    run(tmp_path / "parts", False, updates=3)
    run(tmp_path / "parts", True, updates=7)
    whole, parts = result(tmp_path / "whole"), result(tmp_path / "parts")
    assert parts["files"].pop("picture-3") and parts == whole  # the shorter one's last
    with pytest.raises(ValueError, match=r"has done 7 updates already, loop\.updates is 5"):
        run(tmp_path / "parts", True, updates=5)
    assert '"updates": 5' not in (tmp_path / "parts" / "config.json").read_text()
    run(tmp_path / "parts", True, updates=7)  # nothing to do
    assert result(tmp_path / "parts")["rows"] == whole["rows"]


def test_a_damaged_newest_checkpoint_stops_the_resume_until_it_is_deleted(tmp_path):
    loop = replace(LOOP, keep=2)
    train(loop, out=tmp_path)
    want, newest = result(tmp_path), checkpoint.latest(tmp_path)
    (newest / "state.safetensors").write_bytes(b"torn")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"4 bytes instead of .*; delete .*step-000004 to go on from update 2"):
            train(loop, out=tmp_path, resume=True)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train(loop, out=tmp_path, resume=True)
    assert result(tmp_path) == want


def test_checkpoints_that_are_gone_are_missed(tmp_path):
    import shutil

    run(tmp_path, False)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run(tmp_path, True)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and for power cuts: what a killed process has written, the kernel keeps
    train(replace(LOOP, updates=1))  # the optimiser's first step imports for seconds; the copies shall have that
    {"kill_everywhere": kill_everywhere, "kill_any_time": kill_any_time}[sys.argv[1]](Path(sys.argv[2]))
