"""`align3d score`: files, rewards and prompts to a table; numbers agree with those of `align3d sample`."""

import json
import sys

import numpy as np
import pytest
import torch
from command_checks import enter, refused
from PIL import Image

from align3d.cli import main
from align3d.commands.sample import scorers
from align3d.rewards.jpeg import JPEGCompress
from align3d.rng import Streams
from align3d.scenes.cameras import canonical
from align3d.scenes.gaussians import Gaussians
from align3d.scenes.ply import read_ply, write_ply
from align3d.types import Views

H, W = 20, 28
REWARDS = '''
"""Rewards of a user."""


def whole(views, prompts):
    """One number for an object: how long its prompt is."""
    return views.rgb.new_tensor([[float(len(prompt))] for prompt in prompts])


def hollow(views, prompts):
    """Coverage."""
    return 1 - views.alpha.mean((2, 3, 4))


hollow.needs = {"alpha"}


def frail(views, prompts):
    """Not a number for long prompts."""
    return whole(views, prompts) * (float("nan") if len(prompts[0]) > 20 else 1)


def refuses(views, prompts):
    raise AssertionError("called")


def check(prompts):
    raise ValueError(f"cannot judge {prompts}")


refuses.check = check
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two pictures, a scene, prompts and rewards."""
    enter(tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "more", raising=False)
    (tmp_path / "more.py").write_text(REWARDS)
    rng = torch.Generator().manual_seed(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(torch.randint(0, 256, (H, W, 3), generator=rng, dtype=torch.uint8).numpy()).save(name)
    quats = torch.nn.functional.normalize(torch.randn(1, 40, 4, generator=rng), dim=-1)
    means, colors = (torch.rand(1, 40, 3, generator=rng) for _ in range(2))
    thing = Gaussians(means - 0.5, quats, torch.full((1, 40, 3), 0.1), torch.full((1, 40), 0.9), colors)
    write_ply(tmp_path / "c.ply", thing)
    return tmp_path


def lines(capsys, *args) -> list[dict]:
    """What --json prints."""
    assert main(["score", *args, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_table(here, capsys):
    args = ["score", "a.png", "c.ply", "--rewards", "mine:redness", "n=jpeg-compress", "--prompt", "a red cube"]
    assert main([*args, "--size", "16"]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["file", "view", "mine:redness", "n"]
    assert [row[:2] for row in rows] == [["a.png", "mean"], ["c.ply", "mean"]]
    exact = lines(capsys, *args[1:], "--size", "16")
    for row, found in zip(rows, exact, strict=True):
        assert [float(x) for x in row[2:]] == pytest.approx(list(found["rewards"].values()), rel=1e-3)


def test_every_view_on_demand(here, capsys):
    args = ["c.ply", "a.png", "--reward", "mine:redness", "--reward", "more:whole", "--prompt", "cup", "--size", "16"]
    scene, picture = lines(capsys, *args, "--views")
    values = scene["views"]["mine:redness"]
    assert len(set(values)) == 4 and sum(values) / 4 == pytest.approx(scene["rewards"]["mine:redness"])
    assert scene["views"]["more:whole"] == [3.0] and picture["views"]["mine:redness"] == [
        picture["rewards"]["mine:redness"]
    ]
    assert main(["score", *args, "--views"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-3] for row in rows] == ["view", "mean", "1", "2", "3", "4", "mean", "1"]
    assert rows[1][-1] == "3" and [row[-1] for row in rows[2:6]] == ["-"] * 4 and rows[7][-1] == "3"
    assert float(rows[3][1]) == pytest.approx(values[1], rel=1e-3)


def test_pictures_are_scored_as_they_are(here, capsys):
    (row,) = lines(capsys, "a.png", "--rewards", "jpeg-compress", "--prompt", "x")
    pixels = torch.from_numpy(np.array(Image.open("a.png"))).permute(2, 0, 1) / 255
    views = Views(canonical(1, H, W), rgb=pixels.expand(1, 4, 3, H, W))
    assert row["rewards"] == {"jpeg-compress": pytest.approx(JPEGCompress()(views, ["x"])[0, 0].item())}
    assert row["file"] == "a.png" and row["prompt"] == "x" and "views" not in row


def test_scenes_are_scored_as_sample_does(here, capsys):
    names = ("mine:redness", "dnc", "more:hollow")
    (row,) = lines(capsys, "c.ply", "--rewards", *names, "--prompt", "x", "--size", "64")
    rng = Streams.batch(7, 0, 0, 1)
    wanted = {name: score(read_ply("c.ply"), ["x"], rng).item() for name, score in scorers(names, ["x"]).items()}
    assert row["rewards"] == pytest.approx(wanted, abs=1e-6)
    assert len(set(wanted.values())) == 3


def test_options_reach_the_renderer(here, capsys):
    args = ["c.ply", "--rewards", "mine:redness", "--prompt", "x", "--size"]
    (small,), (large,) = lines(capsys, *args, "16"), lines(capsys, *args, "48")
    (black,) = lines(capsys, *args, "16", "--background", "1", "0", "0")
    (wide,) = lines(capsys, *args, "16", "--eps2d", "9")
    numbers = [row["rewards"]["mine:redness"] for row in (small, large, black, wide)]
    assert len(set(numbers)) == 4 and numbers[2] > numbers[0] + 0.1


def test_a_prompt_for_each_file(here, capsys):
    rows = lines(capsys, "a.png", "b.png", "--rewards", "more:whole", "--prompts", "prompts.txt")
    assert [row["rewards"]["more:whole"] for row in rows] == [len("a red cube"), len("a longer prompt of a blue ball")]
    assert [row["prompt"] for row in rows] == ["a red cube", "a longer prompt of a blue ball"]


def test_names_of_files_do_not_reach_the_terminal_raw(here, capsys):
    (here / "a.png").rename("\x1b[31m.png")
    assert main(["score", "\x1b[31m.png", "--rewards", "mine:redness", "--prompt", "x"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and r"'\x1b[31m.png'" in shown


ONE = ["score", "a.png", "--rewards", "mine:redness"]
REFUSALS = {
    "no files": (["score", "--rewards", "dnc", "--prompt", "x"], "no files; "),
    "no rewards": (["score", "a.png", "--prompt", "x"], "no rewards; give --rewards NAME"),
    "unknown reward": (["score", "a.png", "--rewards", "nope", "--prompt", "x"], "unknown reward 'nope'"),
    "twice": ([*ONE, "--reward", "mine:redness", "--prompt", "x"], "is asked for twice"),
    "option": (["score", "a.png", "--rewards", "jpeg-compress(quality=0)", "--prompt", "x"], "quality must be 1 to 95"),
    "no prompt": (ONE, "--prompts FILE with a line for each, got neither"),
    "both": ([*ONE, "--prompt", "x", "--prompts", "prompts.txt"], "got both"),
    "empty prompt": ([*ONE, "--prompt", " "], "empty --prompt"),
    "prompts": ([*ONE, "--prompts", "prompts.txt"], "must have a prompt for each of the 1 files, got 2"),
    "no prompt file": ([*ONE, "--prompts", "nope.txt"], "no prompt file nope.txt"),
    "missing": (["score", "a.png", "none.png", *ONE[2:], "--prompt", "x"], "no file none.png"),
    "folder": (["score", ".", *ONE[2:], "--prompt", "x"], ". is no picture and no scene by its name"),
    "kind": (["score", "prompts.txt", *ONE[2:], "--prompt", "x"], "known: .png, .jpg, .jpeg, .webp, .ply"),
    "cut": (["score", "a.png", "cut.png", *ONE[2:], "--prompt", "x"], "cut.png is no sound picture"),
    "scene": (["score", "a.png", "bad.ply", *ONE[2:], "--prompt", "x"], "bad.ply starts with"),
    "needs": (
        ["score", "c.ply", "a.png", "--rewards", "dnc", "--prompt", "x"],
        "reward dnc needs alpha, depth, normal, and a.png is a picture, which has colours alone; give it .ply scenes",
    ),
    "check": (["score", "a.png", "--rewards", "more:refuses", "--prompt", "x"], "cannot judge ['x']"),
    "size": ([*ONE, "--prompt", "x", "--size", "0"], "size must be 1 to 8192, got 0"),
    "large": ([*ONE, "--prompt", "x", "--size", "8192.5"], "--size"),
    "background": ([*ONE, "--prompt", "x", "--background", "1", "2", "0"], "background must be 0 to 1, got 2"),
    "eps2d": ([*ONE, "--prompt", "x", "--eps2d", "nan"], "eps2d must be 0 to 1000, got nan"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_before_anything_is_scored(here, capsys, case):
    (here / "cut.png").write_bytes((here / "a.png").read_bytes()[:300])
    (here / "bad.ply").write_text("no ply")
    args, message = REFUSALS[case]
    assert message in refused(capsys, args)


def test_what_was_scored_before_a_failure_is_there(here, capsys):
    assert main(["score", "a.png", "b.png", "--rewards", "more:frail", "--prompts", "prompts.txt"]) == 1
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["file", "a.png"]
    assert "reward more:frail returned nan" in shown.err
