"""The benchmarks run, on sizes that say nothing, and measure what they say."""

import multiprocessing
import re
import sys
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_model import write_checkpoint

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Benchmarks as modules; the number of threads is put back."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"), views=4)


@pytest.fixture
def setup(weights):
    import update

    return update.Setup("colorfulness", "float32", beta=100.0, batch_size=2, threads=1, weights=weights)


def test_clock_books_every_moment_once():
    import update

    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 20.0, 30.0])
    clock = update.Clock(lambda: next(now))
    with clock.part("outer"), clock.part("inner"):  # opened at 0 and 1
        clock.rename("later")  # at 3; closed at 6 and 10
    assert clock.take() == {"outer": 5.0, "inner": 2.0, "later": 3.0}
    with clock.part("outer"):
        assert clock.timed(lambda x: x + 1, {"another": "never"})(1) == 2
    assert set(clock.take()) == {"outer"}


@pytest.mark.parametrize("option", [{}, {"jacobian": True}, {"chunk": 0}, {"merge": False}, {"gradient_at": "x0"}])
def test_parts_make_up_the_update(setup, option):
    import update

    bench = update.Bench(replace(setup, **option))
    row = bench.update()
    memory = row.pop("memory")
    assert memory > 100
    wanted = {part for parts in update.GROUPS.values() for part in parts} - (
        set() if option.get("jacobian") else {"network"}
    )
    assert set(row) == wanted
    assert all(value > 0 for value in row.values())
    assert update.seconds(row) == pytest.approx(sum(row.values()))
    assert row["sampling"] > row["reference"]  # 20 passes of the network against 4


def test_timers_change_nothing(setup):
    import update

    timed, plain = update.Bench(setup), update.Bench(setup)
    timed.update()
    plain.run.update(0)
    for name, parameter in plain.run.state.trainable.items():
        assert torch.equal(parameter, timed.run.state.trainable[name]), name
    assert "predict" not in vars(timed.model)  # and they are gone


def test_update_prints_its_tables(weights, capsys, monkeypatch):
    import remote
    import update

    def pipe():
        ours, theirs = multiprocessing.Pipe()
        return ours, SimpleNamespace(send=theirs.send, recv=theirs.recv, close=lambda: None)

    # threads in the place of processes, which would import everything again
    local = SimpleNamespace(Pipe=pipe, Process=threading.Thread)
    monkeypatch.setattr(remote.multiprocessing, "get_context", lambda _: local)
    update.main(
        ["--updates", "1", "--threads", "1", "--batch-size", "1", "--weights", str(weights), "--variants", "dnc"]
    )
    shown = capsys.readouterr().out
    shares = [float(x) for x in re.findall(r"^\| [a-z ]+ \| \d+ \| ([\d.]+) % \|$", shown, re.MULTILINE)]
    assert len(shares) == len(update.GROUPS) and sum(shares) == pytest.approx(100, abs=0.5)
    assert re.search(r"^\| dnc \| \d+ \| [\d.]+ \|", shown, re.MULTILINE)


def test_plain_schedule_has_the_gradient_of_ours(weights):
    import step

    base = step.Setup("jacobian", {"transitions": 3}, batch_size=2, threads=1, precision="float32", weights=weights)
    want = step.Bench(base).gradient(0)
    assert want.isfinite().all() and want.abs().max() > 0
    for name in (*step.PLAIN, "jacobian of 3"):
        got = step.Bench(step.setup_of(base, name)).gradient(0)
        assert (got - want).norm() < 1e-3 * want.norm(), name
    other = step.Bench(step.setup_of(base, "jacobian of 2")).gradient(0)
    assert (other - want).norm() > 0.1 * want.norm()


def test_step_prints_its_table(weights, capsys, monkeypatch):
    import remote
    import step

    def pipe():
        ours, theirs = multiprocessing.Pipe()
        return ours, SimpleNamespace(send=theirs.send, recv=theirs.recv, close=lambda: None)

    local = SimpleNamespace(Pipe=pipe, Process=threading.Thread)
    monkeypatch.setattr(remote.multiprocessing, "get_context", lambda _: local)
    names = ["plain, object by object", "default", "x0 of 2"]
    args = ["--updates", "1", "--threads", "1", "--batch-size", "1", "--transitions", "2", "--weights", str(weights)]
    step.main([*args, "--schedules", *names])
    shown = capsys.readouterr().out
    rows = re.findall(r"^\| ([a-z0-9, ]+) \| ([\d.]+) \| ([\d.]+) \|", shown, re.MULTILINE)
    assert [row[0] for row in rows] == names and rows[0][2] == "1.00"
    with pytest.raises(SystemExit, match="unknown schedule 'fastest'"):
        step.main(["--schedules", "fastest"])


def test_demo_benchmark_times_what_the_demo_announces(monkeypatch, capsys, tmp_path):
    import demo

    printed = ["   0 s  judging the base model: 2 prompts", "   1 s  training on dnc", "| a | row |", "   2 s  done: x"]
    watch = demo.watch
    lines, end = watch([sys.executable, "-c", f"print({chr(10).join(printed)!r})"], tmp_path)
    assert len(lines) == 4 and all(0 < when <= end for when, _ in lines)
    times = [(1.0, lines[0][1]), (3.0, lines[1][1]), (6.0, lines[2][1]), (7.0, lines[3][1])]
    wanted = [("start", 1.0), ("judging the base model", 2.0), ("training on dnc", 4.0), ("done", 1.0)]
    assert demo.phases(times, 8.0) == wanted

    monkeypatch.setattr(demo, "watch", lambda *_: (times, 8.0))
    demo.main(["--updates", "1"])
    shown = capsys.readouterr().out
    assert "| training on dnc | 4 |" in shown and "| **all** | 8 |" in shown and "| a | row |" in shown
    with pytest.raises(SystemExit, match="exit code 3"):
        watch([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_raster_prints_its_table(monkeypatch, capsys):
    import raster

    monkeypatch.setattr(raster, "SCENES", {"demo": (2, 8, 12, 2, "trained")})
    monkeypatch.setattr("sys.argv", ["raster.py", "--scenes", "demo", "--threads", "1", "--repeats", "1"])
    raster.main()
    shown = capsys.readouterr().out
    assert all(re.search(rf"^demo +{backend} +[\d.]+ +[\d.]+", shown, re.MULTILINE) for backend in ("native", "torch"))


def test_rewardsds_optimises_judges_and_goes_on(monkeypatch, tmp_path, capsys):
    import rewardsds

    settings = {"sds": ("none", 1, 1, 2), "mean of 2": ("mean", 2, 1, 2), "best of 2": ("best", 2, 1, 2)}
    monkeypatch.setattr(rewardsds, "SETTINGS", settings)
    monkeypatch.setattr(rewardsds, "DEFAULT", tuple(settings))
    monkeypatch.setattr(rewardsds, "REWARDS", ("clip-tiny", "dnc"))
    job = rewardsds.Job("best of 2", "a red chair", 0)
    made = rewardsds.optimise(job)
    assert made["evaluations"] == 4 and made["scores"].keys() == set(rewardsds.REWARDS)
    assert made["key"] != replace(job, reward="imagenet").key
    assert replace(job, setting="sds").key == replace(job, setting="sds", reward="imagenet").key, "nothing is chosen"

    asked = []
    scores = {"sds": 0.25, "mean of 2": 0.5, "best of 2": 1.0}
    result = {"key": "", "evaluations": 2.0, "seconds": 1.0, "picture": [[[0, 255]] * 8] * 3}

    def optimise(job):
        asked.append(job.key)
        height = scores[job.setting] + rewardsds.PROMPTS.index(job.prompt) / 100
        return result | {"key": job.key, "scores": dict.fromkeys(rewardsds.REWARDS, height)}

    monkeypatch.setattr(rewardsds, "optimise", optimise)
    monkeypatch.setattr(rewardsds, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(sys, "argv", ["rewardsds.py", "--out", str(tmp_path), "--seeds", "2"])
    rewardsds.main()
    assert len(asked) == len(set(asked)) == 2 * len(rewardsds.PROMPTS) * len(settings)
    best = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| best of 2"))
    assert (
        "1.025" in best
        and best.count("+0.750 (+0.750 to +0.750)") == 2
        and best.count("+0.500 (+0.500 to +0.500)") == 2
    )
    rewardsds.main()
    assert len(asked) == 36, "nothing is made twice"
    assert (tmp_path / "sheet-clip-tiny.webp").stat().st_size > 100


class Inline:
    """Runs in this process what others would."""

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, job):
        done = Future()
        done.set_result(function(job))
        return done
