"""What a training run shows: samples before and after, a page, whatever becomes of it."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from user_parts import ToyModel, redness

from align3d import samples
from align3d.commands.train import Train, run
from align3d.diffusion.sampler import NonFiniteError
from align3d.interrupts import Terminated
from align3d.loop import Loop
from align3d.methods.nabla import Nabla
from align3d.scenes.cameras import CameraSampling

NAMES = {"model": "toy", "method": "nabla", "reward": "redness"}
LOOP = Loop(updates=2, batch_size=2, checkpoint_every=1)


@dataclass(frozen=True)
class Toy:
    """As user_parts.Toy, without files."""

    steps: int = 3

    def load(self, device="cpu"):
        model = ToyModel()
        model.steps = self.steps
        return model


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run in tmp_path/run; gives its folder."""
    monkeypatch.setattr(samples, "FRAMES", 3)
    monkeypatch.setattr(samples, "SIDE", 8)
    (tmp_path / "prompts.txt").write_text("a red cube\na longer prompt of a blue ball\n")

    def train(loop=LOOP, reward=redness, **options) -> Path:
        asked = Train(prompts=tmp_path / "prompts.txt", out=tmp_path / "run", device="cpu", **options)
        parts = {"model": Toy(), "method": Nabla(beta=1.0, transitions=2), "reward": reward}
        run(asked, names=NAMES, loop=loop, cameras=CameraSampling(size=16), **parts)
        return asked.out

    return train


def steps(out: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted((out / "samples").iterdir())]


def page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_a_run_shows_before_and_after_and_where_the_time_went(start):
    out = start()
    assert steps(out) == [0, 2]
    text = page(out)
    for words in ("Model toy, aligned with redness by nabla", "Before and after", "All around", "Diversity", "Drift"):
        assert f">{words}<" in text
    assert 'alt="a red cube, before"' in text and 'alt="a red cube, after 2 updates"' in text
    assert "diversity between seeds 0." in text and "redness 0." in text.replace("\N{MINUS SIGN}", "")
    for phase in ("sampling", "reference", "adapter", "reward and its gradient"):
        assert f"</i>{phase}<em>" in text
    assert not [path for path in out.rglob(".tmp-*")]


def test_the_page_keeps_up_with_the_samples(start, monkeypatch):
    seen = []

    def look(out):
        rows = out / "metrics.jsonl"
        seen.append((len(rows.read_text().splitlines()) if rows.exists() else 0, steps(out)))

    monkeypatch.setattr("align3d.report.write_report", look)
    start(Loop(updates=3, batch_size=2, sample_every=2))
    assert seen == [(0, [0]), (2, [0, 2]), (3, [0, 2, 3]), (3, [0, 2, 3])]


def test_a_page_that_fails_does_not_lose_the_run(start, monkeypatch, capsys):
    def fail(out):
        raise RuntimeError("no ink")

    monkeypatch.setattr("align3d.report.write_report", fail)
    out = start()
    assert "align3d: no report: no ink" in capsys.readouterr().err
    assert (out / "checkpoints/step-000002").is_dir() and (out / "adapter").is_dir()


def test_an_interrupted_run_has_a_page_and_a_resumed_one_a_new_one(start, tmp_path):
    def pressed(views, prompts):
        if views.rgb.requires_grad and not pressed.count:  # in an update, not in a sample
            pressed.count += 1
            signal.raise_signal(signal.SIGINT)
        return redness(views, prompts)

    pressed.count = 0
    with pytest.raises(KeyboardInterrupt, match="stopped after update 1 of 2"):
        start(reward=pressed)
    out = tmp_path / "run"
    assert pressed.count == 1 and steps(out) == [0]
    assert "1 update." in page(out)
    start(resume=True)
    assert steps(out) == [0, 2] and "Over 2 updates" in page(out)
    (out / "report.html").unlink()
    start(resume=True)  # nothing to do but this
    assert "Over 2 updates" in page(out)


def test_sigterm_saves_and_has_its_code(start, tmp_path):
    def preempted(views, prompts):
        if views.rgb.requires_grad and not preempted.count:
            preempted.count += 1
            signal.raise_signal(signal.SIGTERM)
        return redness(views, prompts)

    preempted.count = 0
    with pytest.raises(Terminated, match="stopped after update 1 of 2; its state is in") as caught:
        start(reward=preempted)
    assert caught.value.code == 143
    assert "1 update." in page(tmp_path / "run")
    start(resume=True)
    assert steps(tmp_path / "run") == [0, 2]


def test_a_start_that_fails_in_its_first_scoring_leaves_no_folder(start, tmp_path):
    def broken(views, prompts):
        return redness(views, prompts) * float("nan")

    with pytest.raises(NonFiniteError, match="returned nan"):
        start(reward=broken)
    assert not (tmp_path / "run").exists()
    start()  # the corrected command


def test_a_refused_run_writes_no_page(start):
    out = start()
    (out / "report.html").write_text("mine")
    with pytest.raises(FileExistsError):
        start()
    assert page(out) == "mine"
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["loop"]["sample_every"] == 0
