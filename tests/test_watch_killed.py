"""A watched run that is killed anywhere and resumed leaves the files of one that was not.

Run as a script, this file kills small watched runs; see test_resume.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS as TEXTS
from fakes import SMALL, FakeMethod, FakeModel, FakeScore, forked
from test_resume import die_at
from test_watch import result, rows, seen
from user_parts import redness

from align3d import samples
from align3d.conditions import Condition, parse
from align3d.evaluate import Evaluation, evaluation_cameras
from align3d.loop import fit
from align3d.rewards.score import as_reward
from align3d.watch import Watching, best


class Still(FakeModel):
    """A fake model that can be looked at without its adapter."""

    adapted = True

    @contextlib.contextmanager
    def reference(self):
        self.adapted = False
        yield
        self.adapted = True


class Glance(Watching):
    """Sees the sum of the offsets, without sampling."""

    def measured(self, model, seeds):
        level = float(model.adapter.offset.detach().sum()) if model.adapted else 0.0
        grid = torch.tensor([[10.0 * p + s for s in seeds] for p in range(len(self.prompts))], dtype=torch.float64)
        pictures = (torch.arange(2 * len(seeds), dtype=torch.uint8) * 9).reshape(2, -1, 1, 1, 1, 1)
        return Evaluation(self.prompts, tuple(seeds), ("level",), (level + grid)[..., None], pictures)


def short(out: Path, stop: tuple[Condition, ...]) -> None:
    """One start of a small watched run, in this process."""
    loop = replace(SMALL, updates=4, keep=1, ema=0.0)
    rewards = {"level": as_reward(redness)}
    watch = Glance(out, ("a", "b"), (0, 1), rewards, None, evaluation_cameras(8), every=1, conditions=stop)
    options = {"config": {}, "progress": False, "watch": watch, "resume": out.exists()}
    fit(Still(), FakeMethod(), FakeScore(), TEXTS, loop, out=out, **options)


def kill_everywhere(root: Path) -> None:
    """Kill a run that a condition ends before every third of its changes to the disk, then let it finish."""
    forked(lambda: short(root / "free", ()))
    levels = list(seen(root / "free", "level").values())
    stop = parse("level > base + 0.05 sd")  # between the second look and the third
    forked(lambda: short(root / "whole", stop))
    want, event, died = result(root / "whole"), -2, -signal.SIGKILL
    while died == -signal.SIGKILL:
        event += 3
        out = root / f"event-{event}"
        died = forked(lambda: (die_at(event, out, half=bool(event % 2)), short(out, stop)))  # noqa: B023
        if forked(lambda: short(out, stop)) or result(out) != want:  # noqa: B023
            print(f"killed at change {event}: not the same")
    print(event, len(rows(root / "whole")), best(root / "whole")["step"], 1 + levels.index(max(levels[:2])))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_a_change_on_disk_and_resumed_leaves_the_same_files(tmp_path):
    paths = os.pathsep.join([str(Path(samples.__file__).parent.parent), str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert not done.returncode and not done.stderr, done.stderr
    (line,) = done.stdout.splitlines()
    events, updates, kept, wanted = map(int, line.split())
    assert events > 50 and updates == 3 and kept == wanted, "the third look ended it, the better of two is kept"


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # slow, and for power cuts
    fit(Still(), FakeMethod(), FakeScore(), TEXTS, replace(SMALL, updates=1), progress=False)  # imports once for all
    kill_everywhere(Path(sys.argv[1]))
