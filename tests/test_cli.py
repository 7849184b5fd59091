"""The command line, run in this process with a model and rewards of the user's own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command_checks import SAMPLE, SMALL, TRAIN, enter, refused
from PIL import Image

from align3d import cli
from align3d.cli import main
from align3d.commands import COMMANDS
from align3d.commands.inputs import gather, read_prompts, slug
from align3d.commands.reading import one_line
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.ply import write_ply


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's folder."""
    return enter(tmp_path, monkeypatch)


def test_overview_names_every_command(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        for name in COMMANDS:
            (line,) = [line for line in shown.out.splitlines() if line.startswith(f"  {name} ")]
            assert len(line.split()) > 3  # says what it does


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    assert main([name, "--help"]) == 0
    assert f"usage: align3d {name}" in capsys.readouterr().out


def test_help_shows_the_options_of_the_chosen_parts(capsys):
    assert main(["train", "--reward", "jpeg-compress", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "--model.steps",
        "--method.rho",
        "--reward.quality",
        "--loop.batch-size",
        "--cameras.size",
        "(default: 60)",
    ):
        assert part in text
    for effect in ("JPEG quality, 1 to 95", "rounds of sampling and learning"):
        assert effect in text


def test_list_and_version(capsys):
    assert main(["list", "rewards"]) == 0
    assert "jpeg" in capsys.readouterr().out
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{kind}s\n" in text for kind in ("model", "method", "reward", "scene"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("align3d ")


def test_help_names_the_methods_that_a_command_takes(capsys):
    for command, takes, other in (("train", "nabla", "sds"), ("optimize", "sds", "nabla")):
        assert main([command, "--help"]) == 0
        flag = (
            " ".join(capsys.readouterr().out.replace("│", " ").split()).partition("--method NAME")[2].partition("--")[0]
        )
        assert takes in flag.replace(",", " ").split() and other not in flag.replace(",", " ").split()


def test_help_of_a_command_by_its_name(capsys):
    assert main(["help", "train"]) == 0
    by_name = capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    assert by_name == capsys.readouterr().out and "usage: align3d train" in by_name


def test_what_is_not_differentiable_is_marked(capsys):
    assert main(["list", "rewards"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    found = [name for name, line in lines.items() if "Not differentiable" in line]
    assert found == ["jpeg-compress", "jpeg-incompress", "vlm-judge"]
    assert main(["train", "--help"]) == 0
    assert "jpeg-compress (not differentiable)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_one_gaussian_is_one(here, capsys):
    one = Gaussians(
        torch.zeros(1, 1, 3),
        torch.tensor([[[1.0, 0, 0, 0]]]),
        torch.full((1, 1, 3), 0.1),
        torch.ones(1, 1),
        torch.full((1, 1, 3), 0.5),
    )
    write_ply("one.ply", one)
    assert main(["render", "one.ply", "--out", "x.png", "--size", "16"]) == 0
    assert capsys.readouterr().out == "x.png  1 Gaussian\n"


def test_values_that_begin_with_a_dash(here, capsys):
    assert "begins with - is given as --prompt=-x" in refused(capsys, ["sample", "--prompt", "-x", "--out", "out"])
    assert main([*SAMPLE, "--prompt=-x", "--frames", "0"]) == 0, capsys.readouterr().err
    assert json.loads((here / "out/samples.jsonl").read_text())["prompt"] == "-x"


def test_doctor_finds_renderers_and_extras(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "native", "gsplat", "auto", "cores", "embedded", "extras"):
        assert word in text


def test_train_resume_and_sample(here, capsys):
    """The way of a user: train with an own model and reward, go on, sample with and without the adapter."""
    args = [*TRAIN, *SMALL, "--reward", "mine:Picky", "--reward.strength=2", "--noise", "0.01"]
    args += ["--background", "0", "0", "1", "--seed", "3", "--loop.sample-every", "1"]
    assert main(args) == 0, capsys.readouterr().err
    config = json.loads((here / "run/config.json").read_text())["config"]
    assert config["reward"] == {"name": "mine:Picky", "strength": 2.0}
    assert config["noise"] == 0.01 and config["background"] == [0, 0, 1]
    assert config["loop"]["seed"] == 3 and config["cameras"]["size"] == 16
    assert config["model"]["name"] == "mine:Toy" and config["method"]["name"] == "nabla"
    rows = [json.loads(line) for line in (here / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all((here / f"run/samples/step-{i:06}/sheet.png").is_file() for i in (0, 1, 2))
    assert capsys.readouterr().out == "2 updates done: open run/report.html\n"

    assert "exists already" in refused(capsys, args)
    assert "run" in refused(capsys, [*args[:-1], "2", "--resume", "--method.rho", "0.1"])
    longer = [arg if arg != "2" else "3" for arg in args]
    assert main([*longer, "--loop.batch-size", "2", "--resume"]) == 0, capsys.readouterr().err
    assert len((here / "run/metrics.jsonl").read_text().splitlines()) == 3

    capsys.readouterr()
    base = [*SAMPLE, "--prompts", "prompts.txt", "--num", "2", "--batch-size", "3"]
    base += ["--rewards", "mine:redness", "jpeg-compress"]
    assert main(base) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (here / "out/samples.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert rows[0]["files"] == [f"000-a-red-cube-s0.{suffix}" for suffix in ("ply", "png", "webp")]
    assert all((here / "out" / name).is_file() for row in rows for name in row["files"])
    assert all(set(row["rewards"]) == {"mine:redness", "jpeg-compress"} for row in rows)
    assert len({row["rewards"]["mine:redness"] for row in rows}) == 4  # seeds and prompts differ

    one = ["sample", "--model", "mine:Toy", "--size", "24", "--frames", "0", "--prompt", "a red cube", "--seed", "1"]
    assert main([*one, "--out", "alone"]) == 0
    assert (here / "alone/000-a-red-cube-s1.ply").read_bytes() == (here / "out/000-a-red-cube-s1.ply").read_bytes()
    assert main([*one, "--out", "tuned", "--adapter", "run"]) == 0
    assert (here / "alone/000-a-red-cube-s1.ply").read_bytes() != (here / "tuned/000-a-red-cube-s1.ply").read_bytes()
    capsys.readouterr()
    assert "not empty" in refused(capsys, base)


def test_render_pictures_and_turntables(here, capsys):
    assert main([*SAMPLE, "--prompt", "a red cube", "--frames", "0"]) == 0
    scene = "out/000-a-red-cube-s0.ply"
    assert main(["render", scene, "--out", "views.png", "--size", "20", "--views", "3"]) == 0
    assert Image.open("views.png").size == (60, 20)
    assert np.asarray(Image.open("views.png")).std() > 1  # something is on it
    for name in ("turn.webp", "turn.gif"):
        assert main(["render", scene, "--out", name, "--size", "20", "--frames", "4"]) == 0
        assert Image.open(name).n_frames == 4
    capsys.readouterr()
    assert "views.png exists" in refused(capsys, ["render", scene, "--out", "views.png"])
    assert main(["render", scene, "--out", "views.png", "--size", "10", "--overwrite"]) == 0
    assert Image.open("views.png").size == (40, 10)


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf-8"])
def test_errors_are_one_line_in_every_locale(here, capsys, monkeypatch, encoding):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["render", "x.ply", "--out", "x.png", "--siz", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Unrecognized options: --siz, 3; Perhaps you meant: --size INT (see" in line and "---" not in line
    assert main(["render", "--help"]) == 0
    stdout.flush()
    assert "usage: align3d render" in stdout.buffer.getvalue().decode(encoding)


def test_interrupted_training_saves_and_says_so(here):
    """Ctrl-C in a real process: exit code 130, one last line, and a run that --resume finishes."""
    args = [sys.executable, "-m", "align3d", *TRAIN, *SMALL, "--reward", "mine:slow"]
    args[args.index("--loop.updates") + 1] = "200"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=environment)
    metrics, patience = here / "run/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < patience and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("align3d: interrupted: stopped after update")
    done = len(metrics.read_text().splitlines())
    assert 0 < done < 200
    again = [arg if arg != "200" else str(done + 1) for arg in args[3:]]
    assert main([*again, "--resume"]) == 0
    assert len(metrics.read_text().splitlines()) == done + 1


def test_prompt_files(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa caf\xe9 chair \r\n#no\r\n  \r\nb".encode())
    assert read_prompts(path) == ["a caf\xe9 chair", "b"]
    assert gather(["first"], path) == ["first", "a caf\xe9 chair", "b"]


def test_shipped_prompts_keep_some_back():
    train, heldout = (read_prompts(Path(name)) for name in ("train", "heldout"))
    assert len(train) > 100 and len(heldout) > 20
    assert not set(train) & set(heldout)


def test_slugs_are_safe_file_names():
    assert slug("A red/../chair, 2!") == "a-red-chair-2"
    assert slug("\u6905\u5b50") == "prompt"
    assert len(slug("x" * 300)) <= 40 and "/" not in slug("a/b\\c\0")


def test_boxes_become_lines():
    box = (
        "╭─ Required options ──────────╮\n│ Missing from align3d train: │\n│     --reward NAME           │\n"
        "│         (required)          │\n│ ─────────────────────────── │\n│ For full helptext, run:     │\n╰─────╯\n"
    )
    assert one_line(box) == "Missing from align3d train: --reward NAME"
    assert one_line("") == "wrong arguments"


def test_an_adapter_brings_its_models_options(here):
    """Options of the run's model are defaults; flags win; a name that is no known model is not imported."""
    from align3d.commands.flags import parse
    from align3d.commands.sample import Sample

    def model(*flags):
        return parse(Sample, "sample", ["--prompt", "x", "--out", "o", "--adapter", "old", *flags])

    Path("old/adapter").mkdir(parents=True)
    Path("old/adapter/adapter_model.safetensors").write_bytes(b"")
    Path("old/adapter/adapter_config.json").write_text('{"r": 4, "lora_alpha": 2.0}')
    recorded = {"name": "embedded", "guidance": 1.5, "steps": 7, "weights": "w", "adapter": "before", "gone": 1}
    Path("old/config.json").write_text(json.dumps({"config": {"model": recorded}}))
    _, chosen = model()
    m = chosen["model"]
    assert (m.rank, m.alpha, m.guidance, m.steps, m.weights, m.adapter) == (4, 2.0, 1.5, 7, Path("w"), None)
    assert model("--model.steps", "9")[1]["model"].steps == 9

    Path("old/config.json").write_text(json.dumps({"config": {"model": {**recorded, "name": "nowhere:Model"}}}))
    assert model()[1]["names"] == {"model": "embedded"} and model()[1]["model"].guidance == 2.5
    Path("old/config.json").write_text(json.dumps({"config": {"model": {**recorded, "steps": 0}}}))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        model()
    Path("old/config.json").unlink()
    assert model()[1]["model"].rank == 4


def test_own_warnings_are_a_line():
    with cli._plain_warnings():
        assert warnings.formatwarning("so", RuntimeWarning, cli.__file__, 1) == "align3d: warning: so\n"
        assert "RuntimeWarning" in warnings.formatwarning("so", RuntimeWarning, "elsewhere.py", 1)
    assert "RuntimeWarning" in warnings.formatwarning("so", RuntimeWarning, cli.__file__, 1)
