"""`align3d optimize`, with a prior whose answers are known."""

import json
from pathlib import Path

import pytest
import torch
from closed_prior import Ellipsoids
from command_checks import enter, refused
from PIL import Image

from align3d.cli import main
from align3d.files import locked
from align3d.scenes.ply import read_ply, write_ply
from align3d.scenes.splats import ball
from align3d.starts import GaussianStart

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


def test_all_pictures_have_the_background(here, capsys):
    assert main([*OPTIMIZE, "--updates", "1", "--background", "0", "0", "1"]) == 0, capsys.readouterr().err
    names = ("views.png", "turntable.webp", "samples/step-000001/00.png", "samples/step-000001/00.webp")
    for name in names:
        red, green, blue = Image.open(Path("run", name)).convert("RGB").getpixel((0, 0))
        assert max(red, green) < 16 and blue > 239, name


def test_it_begins_with_a_file(here, capsys):
    assert main([*OPTIMIZE, *FEW]) == 0, capsys.readouterr().err
    again = [arg if arg != "run" else "second" for arg in OPTIMIZE]
    assert main([*again, "--updates", "1", "--scene.start", "run/scene.ply"]) == 0, capsys.readouterr().err
    first, second = (read_ply(Path(out, "scene.ply")) for out in ("run", "second"))
    assert 0 < float((first.means - second.means).abs().max()) < 0.01


def test_a_run_goes_on_with_the_file_that_it_began_with_alone(here, capsys):
    files = [ball(64, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    write_ply("start.ply", files[0])
    edit = [*OPTIMIZE, *FEW, "--method", "dds", "--method.source", "a grey ball", "--scene.start", "start.ply"]
    assert main([*edit, "--updates", "2"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    write_ply("start.ply", files[1])
    said = refused(capsys, [*edit, "--resume"])
    assert "run has another configuration: the content of the file of --scene.start was '" in said
    write_ply("start.ply", files[0])
    assert main([*edit, "--resume"]) == 0, capsys.readouterr().err


def test_prompts_are_finished_with_the_file_that_they_began_with_alone(here, capsys):
    write_ply("start.ply", ball(64, generator=torch.Generator().manual_seed(0)))
    args = [*MANY, "--updates", "1", "--scene.start", "start.ply"]
    assert main(args) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(args) == 0 and capsys.readouterr().out.count("finished before") == 2
    write_ply("start.ply", ball(64, generator=torch.Generator().manual_seed(1)))
    assert main(args) == 2
    assert "1/2 000-a-red-cube: run/000-a-red-cube has another configuration: the content" in capsys.readouterr().err


def test_a_scene_is_edited(here, capsys):
    """DDS compares with the scene as it was: what the texts share stays."""
    assert main([*OPTIMIZE, "--updates", "30"]) == 0, capsys.readouterr().err
    edit = [arg if arg != "run" else "edited" for arg in OPTIMIZE]
    edit += ["--method", "dds", "--method.source", "a red thing", "--prompt", "a blue thing", "--updates", "30"]
    assert main([*edit, "--scene.start", "run/scene.ply"]) == 0, capsys.readouterr().err
    before, after = (read_ply(Path(out, "scene.ply")).colors.mean((0, 1)) for out in ("run", "edited"))
    assert after[2] - before[2] > 0.02 and after[0] - before[0] < -0.02
    new = [arg if arg != "edited" else "new" for arg in edit]
    capsys.readouterr()
    assert "dds" in refused(capsys, new)


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


MANY = [arg for arg in OPTIMIZE if arg not in ("--prompt", "a red thing")] + ["--prompts", "prompts.txt", *FEW]


def test_many_prompts_are_made_and_finished_ones_left_out(here, capsys):
    assert main([*MANY, "--updates", "2"]) == 0, capsys.readouterr().err
    folders = sorted(path.name for path in Path("run").iterdir())
    assert folders == ["000-a-red-cube", "001-a-longer-prompt-of-a-blue-ball"]
    before = [Path("run", name, "scene.ply").stat().st_mtime_ns for name in folders]
    capsys.readouterr()
    assert main([*MANY, "--updates", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{i + 1}/2 {name}: finished before" for i, name in enumerate(folders)
    ]
    assert [Path("run", name, "scene.ply").stat().st_mtime_ns for name in folders] == before
    assert main(MANY) == 0, "what is to be longer goes on"
    assert [len(rows(f"run/{name}")) for name in folders] == [4, 4]
    alone = [*OPTIMIZE, *FEW, "--prompt", "a red cube", "--out", "alone"]
    assert main(alone) == 0
    assert Path("alone/scene.ply").read_bytes() == Path("run", folders[0], "scene.ply").read_bytes()


@pytest.mark.parametrize(("adapter", "loads"), [(None, 1), (torch.nn.Linear(1, 1), 2)])
def test_a_prior_is_loaded_again_only_if_a_scene_has_trained_it(here, capsys, monkeypatch, adapter, loads):
    found = []
    load = Ellipsoids.load

    def counted(self, device="cpu"):
        found.append(load(self, device))
        found[-1].adapter = adapter
        return found[-1]

    monkeypatch.setattr(Ellipsoids, "load", counted)
    assert main([*MANY, "--updates", "1"]) == 0, capsys.readouterr().err
    assert len(found) == loads


def test_what_another_process_is_at_is_left_to_it(here, capsys):
    Path("run/000-a-red-cube").mkdir(parents=True)
    with locked(Path("run/000-a-red-cube")):
        assert main([*MANY, "--updates", "1"]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
    assert "1/2 000-a-red-cube: another process is at it" in said and "2/2 001" in said
    assert not Path("run/000-a-red-cube/scene.ply").exists()


def test_one_failure_does_not_stop_the_others(here, capsys):
    Path("picky.py").write_text(
        "def picky(views, prompts):\n"
        "    value = views.rgb.mean((-3, -2, -1))\n"
        "    return value * float('nan') if 'cube' in prompts[0] else value\n"
    )
    assert main([*MANY, *CHOOSE, "--updates", "1", "--reward", "picky:picky"]) == 1
    shown = capsys.readouterr()
    assert "1/2 000-a-red-cube: reward picky" in shown.err and "1 of 2 prompts failed: 000-a-red-cube" in shown.err
    assert Path("run/001-a-longer-prompt-of-a-blue-ball/scene.ply").is_file()


def test_a_prompt_that_is_refused_does_not_stop_the_others(here, capsys, monkeypatch):
    made = GaussianStart.subject

    def picky(self, stage):
        if "cube" in stage.prompt:
            raise ValueError("cubes are not for me")
        return made(self, stage)

    monkeypatch.setattr(GaussianStart, "subject", picky)
    assert main([*MANY, "--updates", "1"]) == 2
    shown = capsys.readouterr().err
    assert "1/2 000-a-red-cube: cubes are not for me" in shown and "1 of 2 prompts failed: 000-a-red-cube" in shown
    assert Path("run/001-a-longer-prompt-of-a-blue-ball/scene.ply").is_file()


def test_what_is_finished_is_of_the_same_configuration(here, capsys):
    one = [*MANY, "--updates", "1"]
    assert main(one) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main([*one, "--method", "nfsd"]) == 2
    shown = capsys.readouterr()
    assert "finished before" not in shown.out and "another configuration: method.name was 'sds'" in shown.err


def test_a_run_that_died_before_its_scene_was_written_is_not_finished(here, capsys):
    one = [*MANY, "--updates", "1"]
    assert main(one) == 0, capsys.readouterr().err
    made = Path("run/000-a-red-cube")
    for name in ("scene.ply", "done.json"):  # the latter is written last
        (made / name).unlink()
    capsys.readouterr()
    assert main(one) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("finished before") == 1 and (made / "scene.ply").is_file()


def test_a_reward_that_gives_up_leaves_the_scene_as_it_is(here, capsys):
    Path("gone.py").write_text(
        "asked = []\n"
        "def gone(views, prompts):\n"
        "    asked.append(1)\n"
        "    if len(asked) > 4:\n"
        "        raise RuntimeError('the endpoint went away')\n"
        "    return views.rgb.mean((-3, -2, -1))\n"
    )
    args = [*OPTIMIZE, *CHOOSE, "--updates", "9", "--loop.checkpoint-every", "1", "--reward", "gone:gone"]
    assert main(args) != 0
    assert "the endpoint went away" in capsys.readouterr().err and 0 < len(rows()) < 9
    scene = Path("run/scene.ply").read_bytes()
    assert main([*args, "--resume"]) != 0, "it is still away"
    assert Path("run/scene.ply").read_bytes() == scene, "and nothing was learnt, so nothing is written"
    assert "finished" not in capsys.readouterr().out and not Path("run/done.json").exists()


def test_absurd_sizes_are_refused(here, capsys):
    said = refused(capsys, [*OPTIMIZE, "--weighting", "best", "--candidates", "1000000000"])
    assert "candidates and steps must be at most 1000, got 1000000000 and 1" in said
    assert "characters, at most" in refused(capsys, [*OPTIMIZE, "--prompt", "a" * 100_000])


class Other(Ellipsoids):
    """Its latents are not what it says."""

    shape = (4, 16, 16)

    def load(self, device="cpu"):
        found = super().load(device)
        found.latent_shape = self.shape
        return found


def test_latents_that_do_not_fit_are_refused(here, capsys, monkeypatch):
    monkeypatch.setattr("closed_prior.Other", Other, raising=False)
    args = [*OPTIMIZE, "--prior", "closed_prior:Other"]
    assert "says that latents of a view are [4, 16, 16], and makes [3, " in refused(capsys, args)


def test_bridge_begins_its_second_stage_halfway(here, capsys):
    bridge = [*OPTIMIZE, "--method", "bridge"]
    for out, more in (("a", ["--updates", "4"]), ("b", ["--loop.updates=6"]), ("c", [*FEW, "--method.stage-two", "1"])):
        args = [arg if arg != "run" else out for arg in bridge]
        assert main([*args, *more]) == 0, capsys.readouterr().err
    found = [json.loads(Path(out, "config.json").read_text())["config"]["method"]["stage_two"] for out in "abc"]
    assert found == [2, 3, 1]


def test_options_that_would_do_nothing_are_refused(here, capsys):
    assert "loop.ema is for generators" in refused(capsys, [*OPTIMIZE, "--loop.ema", "0.9"])
    said = refused(capsys, [*OPTIMIZE, "--loop.learning-rate", "5"])
    assert "loop.learning_rate does nothing to a scene of gaussians" in said


def test_what_saves_memory_may_change(here, capsys):
    first = [*OPTIMIZE, *CHOOSE]
    assert main([*first, "--updates", "1"]) == 0, capsys.readouterr().err
    assert main([*first, "--updates", "2", "--resume", "--method.explore.chunk", "2"]) == 0, capsys.readouterr().err
    assert len(rows()) == 2


@pytest.mark.parametrize("more", [[], ["--prompt", "x", "--prompts", "prompts.txt"]])
def test_there_is_one_prompt_or_a_file_of_them(here, capsys, more):
    plain = [arg for arg in OPTIMIZE if arg not in ("--prompt", "a red thing")]
    assert "give --prompt TEXT or --prompts FILE, and not both" in refused(capsys, [*plain, *more])


def test_the_shipped_prior_needs_nothing(here, capsys):
    args = ["optimize", "--prompt", "a red chair", "--out", "run", "--updates", "2", "--scene.num", "64"]
    assert main([*args, "--candidates", "2", "--weighting", "best"]) == 0, capsys.readouterr().err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["prior"]["name"] == "embedded" and config["method"]["guidance"] == 5.0
    assert rows()[-1]["reward_best"] >= rows()[-1]["reward"]
