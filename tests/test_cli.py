"""The command line, run in this process with a model and rewards of the user's own."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align3d.cli import main
from align3d.commands import COMMANDS
from align3d.commands.flags import one_line
from align3d.commands.inputs import gather, read_prompts, slug
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.ply import write_ply

MINE = Path(__file__).with_name("user_parts.py").read_text(encoding="utf-8")
TRAIN = ["train", "--model", "mine:Toy", "--prompts", "prompts.txt", "--out", "run", "--cameras.size", "16"]
SMALL = ["--loop.updates", "2", "--loop.batch-size", "2", "--loop.checkpoint-every", "1"]
SAMPLE = ["sample", "--model", "mine:Toy", "--out", "out", "--size", "24", "--frames", "3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with the user's module and some prompts in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "prompts.txt").write_text("# toys\na red cube\n\na longer prompt of a blue ball\n")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, less what importing makes."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(capsys, args) -> str:
    """The message of a command that must end with exit code 2, one line, and no trace."""
    before = contents(Path())
    assert main([str(arg) for arg in args]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("align3d: error: "), shown.err
    assert contents(Path()) == before
    return lines[0]


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
    assert main(["train", "--reward", "jpeg", "--help"]) == 0
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


def test_help_of_a_command_by_its_name(capsys):
    assert main(["help", "train"]) == 0
    by_name = capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    assert by_name == capsys.readouterr().out and "usage: align3d train" in by_name


def test_what_is_not_differentiable_is_marked(capsys):
    assert main(["list", "rewards"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert [name for name, line in lines.items() if "Not differentiable" in line] == ["jpeg"]
    assert main(["train", "--help"]) == 0
    assert "jpeg (not differentiable)" in " ".join(capsys.readouterr().out.replace("│", " ").split())


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
    base = [*SAMPLE, "--prompts", "prompts.txt", "--num", "2", "--rewards", "mine:redness", "jpeg", "--batch-size", "3"]
    assert main(base) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (here / "out/samples.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert rows[0]["files"] == [f"000-a-red-cube-s0.{suffix}" for suffix in ("ply", "png", "webp")]
    assert all((here / "out" / name).is_file() for row in rows for name in row["files"])
    assert all(set(row["rewards"]) == {"mine:redness", "jpeg"} for row in rows)
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


RENDER = ["render", "nope.ply", "--out", "x.png"]
OWN = ["train", "--reward", "dnc", "--prompts", "prompts.txt", "--out", "run"]
REFUSALS = {
    "command": (["trian"], "did you mean train"),
    "model": (["sample", "--model", "nope", "--out", "out", "--prompt", "x"], "unknown model 'nope'; known: embedded"),
    "method": (
        [*TRAIN, "--method", "nope", "--reward", "dnc"],
        "unknown method 'nope'; known: ddpo, draft, nabla",
    ),
    "reward": (
        [*TRAIN, "--reward", "nope"],
        "unknown reward 'nope'; known: clip-tiny, colorfulness, dnc, imagenet",
    ),
    "reward of sample": ([*SAMPLE, "--prompt", "x", "--rewards", "nope"], "unknown reward 'nope'"),
    "no module": ([*TRAIN, "--reward", "nope.mod:Mine"], "nope"),
    "no attribute": ([*TRAIN, "--reward", "mine:Other"], "no attribute 'Other'"),
    "no reward": (TRAIN, "needs --reward NAME; known: clip-tiny"),
    "flag": ([*TRAIN, "--reward", "dnc", "--model.stepz", "3"], "--model.stepz"),
    "type": ([*TRAIN, "--reward", "dnc", "--model.steps", "x"], "--model.steps: invalid literal for int"),
    "missing flag": (["train", "--reward", "dnc", "--prompts", "prompts.txt"], "--out PATH"),
    "option": ([*TRAIN, "--reward", "jpeg", "--reward.quality", "0"], "quality must be 1 to 95, got 0"),
    "updates": ([*TRAIN, "--reward", "dnc", "--loop.updates", "0"], "loop.updates must be at least 1"),
    "num": ([*SAMPLE, "--prompt", "x", "--num", "0"], "num must be at least 1, got 0"),
    "no prompt": (SAMPLE, "no prompts"),
    "empty prompt": ([*SAMPLE, "--prompt", " "], "empty --prompt"),
    "no prompt file": ([*SAMPLE, "--prompts", "nope.txt"], "no prompt file nope.txt"),
    "empty prompt file": ([*SAMPLE, "--prompts", "empty.txt"], "empty.txt has no prompts"),
    "binary prompt file": ([*SAMPLE, "--prompts", "binary.txt"], "binary.txt is not UTF-8"),
    "folder of prompts": ([*SAMPLE, "--prompts", "."], "no prompt file"),
    "reward's check": ([*TRAIN, "--reward", "mine:Picky", "--prompts", "unicorn.txt"], "never seen a unicorn"),
    "no gradient": ([*TRAIN, "--reward", "jpeg"], "choose a differentiable reward"),
    "no adapter": ([*SAMPLE, "--prompt", "x", "--adapter", "nope"], "nope holds no adapter"),
    "output is a file": ([*TRAIN, "--reward", "mine:redness", "--out", "prompts.txt/run"], "prompts.txt"),
    "sample into a file": ([*SAMPLE, "--prompt", "x", "--out", "prompts.txt/out"], "prompts.txt is a file"),
    "sample into a full folder": ([*SAMPLE, "--prompt", "x", "--out", "."], "is not empty"),
    "nothing to resume": ([*TRAIN, "--reward", "mine:redness", "--resume"], "run is not there"),
    "no scene": (["render", "nope.ply", "--out", "x.png"], "no scene file nope.ply; give a .ply file"),
    "no scene file": (["render", "prompts.txt", "--out", "x.png"], "prompts.txt"),
    "extension": (
        ["render", "nope.ply", "--out", "x.bmp"],
        "unknown extension '.bmp'; use one of .png, .webp, .jpg, .jpeg, .gif",
    ),
    "film": (["render", "nope.ply", "--out", "x.mp4"], "x.mp4"),
    "size": (["render", "nope.ply", "--out", "x.png", "--size", "0"], "size must be 1 to 8192, got 0"),
    "views": ([*RENDER, "--size", "8000", "--views", "1000"], "1000 views of 8000 x 8000 pixels are too much"),
    "frames": ([*RENDER, "--out", "x.gif", "--frames", "100000"], "at most 4096 frames of that size"),
    "wide": ([*RENDER, "--out", "x.jpg", "--size", "100", "--views", "700"], "at most 65535 pixels wide, got 70000"),
    "large": ([*RENDER, "--size", "32000"], "size must be 1 to 8192, got 32000"),
    "elevation": ([*RENDER, "--elevation", "nan"], "elevation must be -90 to 90, got nan"),
    "elevation 91": ([*RENDER, "--elevation", "91"], "elevation must be -90 to 90, got 91"),
    "radius": ([*RENDER, "--radius", "inf"], "radius must be 0.001 to 1000, got inf"),
    "radius 1e30": ([*RENDER, "--radius", "1e30"], "radius must be 0.001 to 1000, got 1e+30"),
    "fps": ([*RENDER, "--out", "x.gif", "--fps", "1e-9"], "fps must be 0.1 to 100, got 1e-09"),
    "fps nan": ([*RENDER, "--out", "x.gif", "--fps", "nan"], "fps must be 0.1 to 100, got nan"),
    "eps2d": ([*RENDER, "--eps2d", "nan"], "eps2d must be 0 to 1000, got nan"),
    "sample size": ([*SAMPLE, "--prompt", "x", "--size", "32000"], "size must be 1 to 8192, got 32000"),
    "sample frames": ([*SAMPLE, "--prompt", "x", "--frames", "10000000"], "10000000 frames of 24 x 24 pixels"),
    "cameras size": ([*TRAIN, "--reward", "dnc", "--cameras.size", "32000"], "cameras.size must be 1 to 8192"),
    "cameras radius": ([*TRAIN, "--reward", "dnc", "--cameras.radius", "1e30"], "cameras.radius and focal must be"),
    "alpha nan": ([*OWN, "--model.alpha", "nan"], "model.alpha must be above 0 and at most 10000, got nan"),
    "alpha inf": ([*OWN, "--model.alpha", "inf"], "model.alpha must be above 0 and at most 10000, got inf"),
    "alpha 0": ([*OWN, "--model.alpha", "0"], "model.alpha must be above 0"),
    "alpha -1": ([*OWN, "--model.alpha=-1"], "model.alpha must be above 0"),
    "guidance": ([*OWN, "--model.guidance", "1e30"], "model.guidance must be 0 to 100, got 1e+30"),
    "guidance inf": ([*OWN, "--model.guidance", "inf"], "model.guidance must be 0 to 100, got inf"),
    "rho": ([*OWN, "--method.rho", "1e9"], "rho must be above 0 and at most 100"),
    "beta": ([*OWN, "--method.beta", "1e30"], "beta must be above 0 and at most 1e+12"),
    "seed": ([*OWN, "--seed=-1"], "seed must be 0 to 9223372036854775807, got -1"),
    "sample seed": ([*SAMPLE, "--prompt", "x", "--seed=-1"], "seed must be 0 to"),
    "demo seed": (["demo", "--out", "out", "--seed=-1"], "seed must be 0 to"),
    "cuda": ([*SAMPLE, "--prompt", "x", "--device", "tpu"], "'tpu'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_in_one_line(here, capsys, case):
    (here / "empty.txt").write_text("\n# nothing\n")
    (here / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    (here / "unicorn.txt").write_text("a cat\na unicorn\n")
    args, message = REFUSALS[case]
    assert message in refused(capsys, args)


@pytest.mark.parametrize(
    ("reward", "code", "message"), [("nan", 1, "reward nan returned nan"), ("flat", 2, "reward flat must return")]
)
def test_broken_rewards_are_named(here, capsys, reward, code, message):
    assert main([*TRAIN, *SMALL, "--reward", f"mine:{reward}"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_resume_names_the_field_that_differs(here, capsys):
    args = [*TRAIN, *SMALL, "--reward", "mine:redness"]
    assert main(args) == 0
    capsys.readouterr()
    for extra, field in (
        ("--method.rho=0.1", "method.rho"),
        ("--cameras.views=1", "cameras.views"),
        ("--seed=9", "loop.seed"),
    ):
        message = refused(capsys, [*args, "--resume", extra])
        assert f"{field} was" in message
    (here / "prompts.txt").write_text("another prompt\n")
    assert "inputs.prompts" in refused(capsys, [*args, "--resume"])


def test_truncated_checkpoints_are_refused(here, capsys):
    args = [*TRAIN, *SMALL, "--reward", "mine:redness"]
    assert main(args) == 0
    capsys.readouterr()
    state = here / "run/checkpoints/step-000002/state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    message = refused(capsys, [*args, "--resume"])
    assert "step-000002/state.safetensors" in message and "cut short" in message and "delete" in message


def test_a_mistake_in_the_users_file_is_told_with_its_line(here, capsys, monkeypatch):
    (here / "mine.py").write_text(MINE + "\n1 / 0\n")
    line = len(MINE.splitlines()) + 2
    message = refused(capsys, [*TRAIN, "--model", "embedded", "--reward", "mine:redness"])
    assert f"'mine:redness' cannot be imported: ZeroDivisionError: division by zero (mine.py:{line})" in message
    monkeypatch.setenv("ALIGN3D_TRACEBACK", "1")
    with pytest.raises(ValueError, match="cannot be imported") as caught:
        main([*TRAIN, "--reward", "mine:redness"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


MISTAKES = """

def normals(views, prompts):
    return views.normal.mean((2, 3, 4))

def one(views):
    return views.rgb.mean((2, 3, 4))

def meta(views, prompts):
    return redness(views, prompts).to("meta")

def odd(views, prompts):
    raise ValueError("cannot judge this")

class NoCall:
    pass

class Needy:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, views, prompts):
        return redness(views, prompts)

class Broken(Needy):
    def __init__(self):
        self.strength = {}["strength"]

@dataclass(frozen=True)
class BadModel(Toy):
    def load(self, device="cpu"):
        return open_weights(device)

class Plain:
    def __call__(self, views, prompts):
        return redness(views, prompts)

number = 3
"""


def line_of(code: str) -> str:
    """Where a piece of the user's file stands."""
    (number,) = [i for i, line in enumerate((MINE + MISTAKES).splitlines(), 1) if line.strip() == code]
    return f"(mine.py:{number})"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--reward", "mine:normals"],
            [
                "reward normals failed: AttributeError: 'NoneType'",
                line_of("return views.normal.mean((2, 3, 4))"),
                "normal",
                "set `needs`",
            ],
        ),
        (["--reward", "mine:one"], ["reward one failed: TypeError: one() takes 1", line_of("def one(views):")]),
        (["--reward", "mine:meta"], ["reward meta must return a tensor on cpu", "got meta"]),
        (
            ["--reward", "mine:odd"],
            ["reward odd failed: ValueError: cannot judge this", line_of('raise ValueError("cannot judge this")')],
        ),
        (["--reward", "mine:NoCall"], ["must be callable with (views, prompts), got NoCall"]),
        (["--reward", "mine:number"], ["must be callable with (views, prompts), got int"]),
        (
            ["--reward", "mine:Needy"],
            [
                "reward Needy failed: TypeError",
                "'strength'",
                "make it a dataclass",
                line_of("def __init__(self, strength):"),
            ],
        ),
        (
            ["--reward", "mine:Broken"],
            ["reward Broken failed: KeyError: 'strength'", line_of('self.strength = {}["strength"]')],
        ),
        (
            ["--reward", "mine:redness", "--model", "mine:BadModel"],
            ["model mine:BadModel failed: NameError", line_of("return open_weights(device)")],
        ),
        (["--reward", "mine:redness", "--model", "mine:redness"], ["model 'mine:redness' has no load()"]),
        (["--reward", "mine:redness", "--method", "mine:redness"], ["method 'mine:redness' has no losses()"]),
    ],
    ids=lambda value: value[-1] if value[0].startswith("--") else "",
)
def test_mistakes_in_the_users_parts_are_told_with_their_line(here, capsys, flags, words):
    (here / "mine.py").write_text(MINE + MISTAKES)
    assert main([*TRAIN, *SMALL, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line


def test_a_plain_class_is_a_reward_without_flags(here, capsys):
    (here / "mine.py").write_text(MINE + MISTAKES)
    args = [*TRAIN, *SMALL, "--loop.updates", "1", "--reward", "mine:Plain"]
    assert main(args) == 0, capsys.readouterr().err
    assert json.loads((here / "run/config.json").read_text())["config"]["reward"] == {"name": "mine:Plain"}
    assert main([*SAMPLE, "--prompt", "x", "--frames", "0", "--rewards", "mine:Plain"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert "--reward.strength" in refused(capsys, [*args, "--reward.strength", "2"])
    assert "model 'mine:redness' has no load()" in refused(
        capsys, ["sample", "--model", "mine:redness", "--prompt", "x", "--out", "o"]
    )


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


@pytest.mark.parametrize("text", ["garbage", '{"config": {"model": {"rank": 2', "[1, 2]", ""])
def test_a_damaged_run_is_refused(here, capsys, text):
    """The options that its model was trained with would be lost in silence."""
    Path("old/adapter").mkdir(parents=True)
    Path("old/adapter/adapter_model.safetensors").write_bytes(b"")
    Path("old/config.json").write_text(text)
    for path in ("old", "old/adapter"):
        message = refused(capsys, ["sample", "--prompt", "x", "--out", "o", "--adapter", path])
        assert "old/config.json: damaged" in message
    Path("old/adapter").rename("old/other")  # then it is no run, and the file somebody else's
    assert "config.json: damaged" not in refused(
        capsys, ["sample", "--prompt", "x", "--out", "o", "--adapter", "old/other"]
    )


def test_one_adapter_is_enough(here, capsys):
    assert main([*TRAIN, *SMALL, "--reward", "mine:redness"]) == 0
    capsys.readouterr()
    message = refused(capsys, [*SAMPLE, "--prompt", "x", "--adapter", "run", "--model.adapter", "other"])
    assert "--adapter run and --model.adapter other; give one of them" in message
