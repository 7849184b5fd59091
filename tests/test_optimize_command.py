"""`align3d optimize`, with a prior whose answers are known."""

import json
from pathlib import Path

import pytest
import torch
from command_checks import enter, refused
from PIL import Image

from align3d.cli import main
from align3d.scenes.ply import read_ply

OPTIMIZE = ["optimize", "--prompt", "a red thing", "--prior", "closed_prior:Ellipsoids", "--reward", "closed_prior:red"]
OPTIMIZE += [
    "--out",
    "run",
    "--method.guidance",
    "1",
    "--cameras.size",
    "12",
    "--cameras.views",
    "3",
    "--scene.num",
    "64",
]
CHOOSE = ["--weighting", "best", "--candidates", "3", "--method.explore.guidance", "1"]
FEW = ["--updates", "4", "--loop.checkpoint-every", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def rows(out="run"):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def test_a_prompt_becomes_a_scene(here, capsys):
    assert main([*OPTIMIZE, *CHOOSE, *FEW]) == 0, capsys.readouterr().err
    scene = read_ply(Path("run/scene.ply"))
    assert scene.means.shape == (1, 64, 3) and torch.isfinite(scene.means).all()
    for name in ("views.png", "turntable.webp"):
        picture = Image.open(Path("run", name))
        assert picture.convert("L").getextrema()[0] < 250, "there is something to see"
    assert {"t", "reward", "reward_std", "reward_chosen", "reward_best", "loss", "evaluations"} <= rows()[0].keys()
    assert rows()[0]["evaluations"] == 2 * 3, "two predictions for each candidate"
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["prompt"] == "a red thing" and config["method"]["weighting"]["kind"] == "best"
    assert config["prior"]["name"] == "closed_prior:Ellipsoids" and config["scene"]["num"] == 64
    text = Path("run/report.html").read_text()
    assert "a red thing: a scene distilled from the prior closed_prior:Ellipsoids by sds" in text
    samples = json.loads(Path("run/samples/step-000004/samples.json").read_text())
    assert samples["prompts"] == ["a red thing"] and set(samples["mean"]) == {"closed_prior:red"}


def test_it_goes_on_to_the_same_bits(here, capsys):
    assert main([*OPTIMIZE, *CHOOSE, *FEW]) == 0, capsys.readouterr().err
    part = [arg if arg != "run" else "part" for arg in [*OPTIMIZE, *CHOOSE, *FEW]]
    assert main([*part, "--updates", "2"]) == 0
    assert main([*part, "--resume"]) == 0
    assert Path("part/scene.ply").read_bytes() == Path("run/scene.ply").read_bytes()
    assert [row["loss"] for row in rows("part")] == [row["loss"] for row in rows()]


def test_it_begins_with_a_file(here, capsys):
    assert main([*OPTIMIZE, *FEW]) == 0, capsys.readouterr().err
    again = [arg if arg != "run" else "second" for arg in OPTIMIZE]
    assert main([*again, "--updates", "1", "--scene.start", "run/scene.ply"]) == 0, capsys.readouterr().err
    first, second = (read_ply(Path(out, "scene.ply")) for out in ("run", "second"))
    assert 0 < float((first.means - second.means).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--prompt", " "], "got an empty --prompt"),
        (["--weighting", "min-max", "--candidates", "3"], "weighting min-max needs 4 candidates or more"),
        (["--candidates", "3"], "3 candidates need a weighting"),
        ([*CHOOSE, "--reward", "dnc"], "reward dnc needs alpha, depth, normal, and candidates are judged by"),
        (["--reward", "nothing"], "unknown reward 'nothing'"),
        (["--prior", "nothing"], "unknown prior 'nothing'"),
        (["--scene", "nothing"], "unknown scene 'nothing'"),
        (["--scene.num", "0"], "scene.num must be 1 to"),
        (["--scene.start", "nothing.ply"], "no scene file nothing.ply"),
        (["--scene.start", "prompts.txt"], "prompts.txt"),
        (["--cameras.views", "5"], "sees 4 views together, got --cameras.views 5"),
        (["--cameras.elevation", "30", "10"], "cameras.elevation must be two angles"),
        (["--method.t-max", "0.01", "0.01"], "0 <= t_min <= t_max <= 1 must hold"),
        (["--seed", "-1"], "seed must be 0 to"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(here, capsys, more, said):
    assert said in refused(capsys, [*OPTIMIZE, *more])


def test_train_and_optimize_point_to_each_other(here, capsys):
    plain = ["optimize", "--prompt", "x", "--prior", "closed_prior:Ellipsoids", "--out", "run", "--method", "nabla"]
    assert "method nabla trains a generator: align3d train --method nabla" in refused(capsys, plain)
    args = ["train", "--model", "mine:Toy", "--prompts", "prompts.txt", "--out", "run", "--reward", "mine:redness"]
    assert "method sds optimises one scene: align3d optimize --method sds" in refused(
        capsys, [*args, "--method", "sds"]
    )


def test_a_reward_that_fails_on_the_way_leaves_the_last_good_state(here, capsys):
    Path("late.py").write_text(
        "calls = []\n"
        "def late(views, prompts):\n"
        "    calls.append(1)\n"
        "    value = views.rgb.mean((-3, -2, -1))\n"
        "    return value * float('nan') if len(calls) > 3 else value\n"
    )
    code = main([*OPTIMIZE, *CHOOSE, *FEW, "--reward", "late:late"])
    said = capsys.readouterr().err
    assert code in (1, 2) and "update 3: reward late returned nan for 'a red thing'" in said, said
    assert [path.name for path in sorted(Path("run/checkpoints").iterdir())][-1] == "step-000002"
    assert torch.isfinite(read_ply(Path("run/scene.ply")).means).all()
