"""`align3d evaluate`, from flags to files, on a toy model that trains in a second."""

import sys

import pytest
import torch
from command_checks import contents, refused
from judged import MEASURE, PROMPTS, copy, furnish, table, train
from tiny_model import write_checkpoint

from align3d import distributed, samples
from align3d.cli import main
from align3d.evaluate import spread

EVALUATE = ["evaluate", *MEASURE, "--out", "out"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run in it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        furnish(folder)
        patch.setattr(samples, "FRAMES", 2)
        train("--out", "run")
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """An empty folder beside it, as the current one: ../run does not exist, RUN does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    furnish(tmp_path)
    copy(trained / "run", tmp_path / "run")
    return tmp_path


def test_base_and_runs_side_by_side(here, capsys):
    (here / "alone").mkdir()
    (here / "run/adapter").rename(here / "alone/adapter")
    args = [*EVALUATE, "--runs", "end=run", "early=run@1", "start=run@0", "file=alone/adapter"]
    assert main(args) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert "| end |" in shown.out and "report.html" in shown.out and "base (1 of 6): 12/12 samples" in shown.err
    found = {row["name"]: row for row in table()["results"]}
    assert list(found) == ["base", "end", "early", "start", "file"]
    assert found["end"]["rewards"] == found["file"]["rewards"] != found["early"]["rewards"]
    assert found["start"]["rewards"] == found["base"]["rewards"]  # an adapter that has learnt nothing
    red, jpeg = found["end"]["changes"]
    assert red["name"] == "mine:redness" and red["change"] > 0 and red["low"] < red["change"] < red["high"]
    assert red["tuned"] - red["base"] == pytest.approx(red["change"]) and jpeg["name"] == "jpeg-compress"
    fid = found["base"]["fid"]
    assert fid["value"] > 0 == fid["above"] and fid["low"] < fid["value"] < fid["high"]
    assert found["start"]["fid"]["value"] == fid["value"] and found["start"]["fid"]["above"] == 0
    assert found["end"]["fid"]["above"] == pytest.approx(found["end"]["fid"]["value"] - fid["value"])
    assert 0 < found["base"]["diversity"] < 2 and found["end"]["diversity_change"]["name"] == "diversity"
    for name, values in found["end"]["prompts"].items():
        assert len(values) == 4 and len(set(values)) == 4, name
    assert sum(found["end"]["prompts"]["mine:redness"]) / 4 == pytest.approx(found["end"]["rewards"]["mine:redness"])
    assert table()["runs"]["early"]["update"] == 1 and table()["runs"]["end"]["trained_on"] == "mine:redness"
    text = (here / "out/table.md").read_text()
    assert "### mine:redness" in text and all(prompt in text for prompt in PROMPTS)
    page = (here / "out/report.html").read_text()
    assert page.count("<img") == 4 * 5 and "the floor" in page and "early" in page
    assert "run ends with" in page and "file ends with" in page and "early ends with" not in page  # one line for a run


def test_the_numbers_are_those_of_the_library(here, capsys):
    from user_parts import ToyModel, redness

    from align3d.evaluate import evaluation_cameras
    from align3d.metrics import diversity, frechet_distance
    from align3d.sampleset import measure

    assert main([*EVALUATE, "--runs", "run"]) == 0, capsys.readouterr().err
    model = ToyModel()
    model.steps = 4
    sys.path.append(".")
    from mine import Corners

    cameras = evaluation_cameras(8, (60.0, 180.0, 300.0))
    sets = [
        measure(model, PROMPTS, s, {"r": redness}, Corners(), cameras) for s in (range(1000, 1003), range(1003, 1006))
    ]
    found = table()["results"][0]
    assert found["rewards"]["mine:redness"] == pytest.approx(float(sets[0].scores.mean()), rel=1e-6)
    assert found["fid"]["value"] == pytest.approx(frechet_distance(*(s.features.flatten(0, 2) for s in sets)), rel=1e-4)
    assert found["diversity"] == pytest.approx(float(diversity(sets[0].features).mean()), rel=1e-4)


def test_a_second_start_goes_on_and_processes_share(here, capsys, monkeypatch):
    args = [*EVALUATE, "--runs", "a=run", "--num", "8"]
    assert main(args) == 0, capsys.readouterr().err
    whole = contents(here / "out")
    assert b" at 0x" not in whole["evaluation.json"]  # of this process: a second start would be refused
    blocks = [name for name in whole if "block" in name]
    assert len(blocks) == 3 * 2 * 2  # sets, blocks, files

    other = [arg if arg != "out" else "shared" for arg in args]
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 1)
        assert main(other) == 0
        assert not (here / "shared/table.json").exists()
        assert len([name for name in contents(here / "shared") if "block" in name]) == 3 * 2
        patch.setattr(distributed, "rank", lambda: 0)
        assert main(other) == 0
    shared = contents(here / "shared")
    assert {n: shared[n] for n in blocks} == {n: whole[n] for n in blocks}
    assert shared["table.json"] == whole["table.json"] and shared["report.html"] == whole["report.html"]

    for name in ("sets/a/block-00001", "sets/base/block-00000"):
        for file in (here / "out" / name).iterdir():
            file.unlink()
        (here / "out" / name).rmdir()
    assert main(args) == 0
    assert contents(here / "out") == whole

    from align3d.commands import adapters

    monkeypatch.setattr(adapters, "load_model", lambda *a: pytest.fail("loaded a model for nothing"))
    assert main(args) == 0
    assert contents(here / "out") == whole


def test_more_runs_may_be_added_and_other_arguments_are_refused(here, capsys):
    assert main([*EVALUATE, "--runs", "a=run@1"]) == 0
    before = contents(here / "out/sets/base")
    assert main([*EVALUATE, "--runs", "a=run@1", "b=run"]) == 0
    assert contents(here / "out/sets/base") == before and len(table()["results"]) == 3
    capsys.readouterr()
    for extra, message in (
        (["--num", "4"], "num was 3, now 4"),
        (["--rewards", "jpeg-compress"], "rewards.mine:redness.name was"),
        (["--features.scale", "2"], "features.scale was 1.0, now 2.0"),
        (["--model.steps", "5"], "model.steps was 4, now 5"),
        (["--max-prompts", "3"], "prompts was 4, now 3"),
        (["--runs", "a=run@2"], "holds other samples: adapter was"),
    ):
        assert message in refused(capsys, [*EVALUATE, *extra])


def test_without_features_there_are_rewards_alone(here, capsys):
    args = [*EVALUATE, "--features", "none", "--num", "1", "--max-prompts", "1", "--runs", "run"]
    assert main(args) == 0, capsys.readouterr().err
    base, tuned = table()["results"]
    assert base["fid"] is None and base["diversity"] is None and base["prompts"].keys() == base["rewards"].keys()
    assert tuned["changes"][0]["low"] is None  # one prompt
    assert "FID" not in (here / "out/table.md").read_text()


def test_model_options_are_those_of_the_run(here, capsys):
    copy(here / "run", here / "three", model__steps=3)
    assert main([*EVALUATE, "--features", "none", "--runs", "three"]) == 0, capsys.readouterr().err
    assert table()["settings"]["model"] == {"name": "mine:Toy", "steps": 3}
    capsys.readouterr()
    assert "three and run were trained with different models: model.steps 3 and 4" in refused(
        capsys, [*EVALUATE, "--runs", "three", "run"]
    )


def test_adapters_of_the_embedded_model_and_of_other_ranks(here, capsys, monkeypatch):
    monkeypatch.setattr(samples, "FRAMES", 2)
    write_checkpoint(here / "tiny", views=4)
    tiny = ["--model", "embedded", "--model.weights", "tiny", "--model.steps", "2", "--model.precision", "float32"]
    for rank, name in ((2, "two"), (3, "three")):
        train(*tiny, "--model.rank", str(rank), "--out", name, "--loop.updates", "1")
    measure = [*EVALUATE, *tiny, "--num", "2", "--max-prompts", "2", "--views", "2"]
    assert main([*measure, "--runs", "two", "three", "c=two@1"]) == 0, capsys.readouterr().err
    base, two, three, c = table()["results"]
    assert two["rewards"] == c["rewards"] != base["rewards"] != three["rewards"] != two["rewards"]
    capsys.readouterr()
    (here / "two/checkpoints/step-000001/state.safetensors").write_bytes(b"x" * 100)
    assert "cut short or overwritten" in refused(capsys, [*measure, "--out", "new", "--runs", "two@1"])
    assert "got --model.adapter two" in refused(capsys, [*measure, "--model.adapter", "two"])


REFUSALS = {
    "no run": (["--runs", "nope"], "nope holds no adapter; give a run's folder"),
    "no adapter": (["--runs", "empty"], "holds no adapter"),
    "no checkpoint": (["--runs", "run@9"], "no checkpoint of update 9, only of 0, 1, 2, 3"),
    "a name twice": (["--runs", "run", "run@1"], "two of --runs are called 'run'"),
    "name": (["--runs", "base=run"], "cannot be called 'base'"),
    "path as a name": (["--runs", "../x=run"], "cannot be called '../x'"),
    "another model": (["--runs", "other"], "other is of the model 'embedded', got --model mine:Toy"),
    "prompts": (["--prompts", "twice.txt"], "prompt 'a cat' is given twice"),
    "what a reward cannot judge": (["--prompts", "unicorn.txt", "--rewards", "mine:Picky"], "never seen a unicorn"),
    "too few": (["--num", "2", "--max-prompts", "1", "--views", "1"], "an FID needs 3 images or more in each set"),
    "how many": (["--num", "2", "--max-prompts", "1", "--views", "1"], "Use --num 3 or more prompts"),
    "one seed": (["--num", "1"], "diversity is measured between the seeds"),
    "no weights": (["--features.scale", "0"], "no weights of corners"),
    "num": (["--num", "0"], "num must be at least 1, got 0"),
    "views": (["--views", "0"], "views must be at least 1, got 0"),
    "size": (["--size", "9000"], "size must be 1 to 8192"),
    "seed": (["--seed=-1"], "seed must be 0 to"),
    "full": (["--out", "run"], "run is not empty and holds no evaluation"),
    "reward": (["--rewards", "nope"], "unknown reward 'nope'"),
    "features": (["--features", "nope"], "unknown features 'nope'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_before_any_work(here, capsys, case):
    (here / "empty").mkdir()
    (here / "twice.txt").write_text("a cat\na cat\n")
    (here / "unicorn.txt").write_text("a cat\na unicorn\n")
    copy(here / "run", here / "other", model__name="embedded")
    args, message = REFUSALS[case]
    assert message in refused(capsys, [*EVALUATE, *args])


def test_a_reward_that_the_scenes_cannot_serve_is_refused(here, capsys, monkeypatch):
    from dataclasses import replace

    from align3d.scenes.gaussians import Gaussians

    render = Gaussians.render
    monkeypatch.setattr(Gaussians, "render", lambda self, *a, **k: replace(render(self, *a, **k), normal=None))
    message = refused(capsys, [*EVALUATE, "--rewards", "mine:Flat"])
    assert "reward mine:Flat needs views with normal, got only rgb" in message


def test_another_process_and_damage_are_named(here, capsys):
    from align3d.files import locked

    (here / "out").mkdir()
    with locked(here / "out"):
        assert "another process is evaluating in out" in refused(capsys, EVALUATE)
    assert main(EVALUATE) == 0
    capsys.readouterr()
    path = here / "out/sets/base/block-00000/samples.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "samples.safetensors: damaged" in refused(capsys, EVALUATE)


def test_spread_is_even_and_keeps_the_end():
    assert spread(3, 5) == [0, 1, 2] and spread(9, 3) == [0, 4, 8] and spread(4, 1) == [3]
    assert all(len(set(spread(n, k))) == min(n, k) for n in range(1, 30) for k in range(1, 12))
    assert torch.tensor(spread(100, 7)).diff().unique().numel() <= 2


FEATURES = """
class Blind:
    def check(self): ...
    def __call__(self, images): return images

class Broken(Blind):
    dims = 4
    def __call__(self, images): raise KeyError("lens")

class Flat(Blind):
    dims = 4
    def __call__(self, images): return images.mean()
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Blind", "lack dims, a whole number (got None); docs/evaluation.md says what they need"),
        ("Broken", "features Broken failed: KeyError: 'lens'"),
        ("Flat", "Flat must give finite features of shape"),
    ],
)
def test_feature_networks_of_users_are_blamed_and_leave_nothing(here, capsys, name, message):
    (here / "lenses.py").write_text(FEATURES)
    args = [*EVALUATE, "--features", f"lenses:{name}"]
    before = contents(here)
    assert main(args) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("align3d: error")]
    assert message in line and contents(here) == before


def test_prompts_that_a_reward_does_not_know_may_be_left_out(here, capsys):
    (here / "some.txt").write_text("a red mug\na unicorn\na blue chair\n")
    args = ["evaluate", *MEASURE, "--out", "out", "--rewards", "user_parts:Picky", "--prompts", "some.txt"]
    args += ["--features", "none"]
    assert "unicorn" in refused(capsys, args)
    assert main([*args, "--skip-unknown"]) == 0, capsys.readouterr().err
    assert table()["prompts"] == ["a red mug", "a blue chair"]
