"""What the command line refuses: bad flags and files, broken rewards, mistakes in the user's own parts."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_checks import MINE, SAMPLE, SMALL, TRAIN, enter, refused

from align3d.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The user's folder."""
    return enter(tmp_path, monkeypatch)


RENDER = ["render", "nope.ply", "--out", "x.png"]
OWN = ["train", "--reward", "dnc", "--prompts", "prompts.txt", "--out", "run"]
REFUSALS = {
    "command": (["trian"], "did you mean train"),
    "model": (["sample", "--model", "nope", "--out", "out", "--prompt", "x"], "unknown model 'nope'; known: diff"),
    "method": (
        [*TRAIN, "--method", "nope", "--reward", "dnc"],
        "unknown method 'nope'; known: ",
    ),
    "reward": (
        [*TRAIN, "--reward", "nope"],
        "unknown reward 'nope'; known: aesthetic, ",
    ),
    "reward of sample": ([*SAMPLE, "--prompt", "x", "--rewards", "nope"], "unknown reward 'nope'"),
    "no module": ([*TRAIN, "--reward", "nope.mod:Mine"], "nope"),
    "no attribute": ([*TRAIN, "--reward", "mine:Other"], "no attribute 'Other'"),
    "no reward": (TRAIN, "needs --reward NAME; known: aesthetic"),
    "flag": ([*TRAIN, "--reward", "dnc", "--model.stepz", "3"], "--model.stepz"),
    "type": ([*TRAIN, "--reward", "dnc", "--model.steps", "x"], "--model.steps: invalid literal for int"),
    "missing flag": (["train", "--reward", "dnc", "--prompts", "prompts.txt"], "--out PATH"),
    "option": ([*TRAIN, "--reward", "jpeg-compress", "--reward.quality", "0"], "quality must be 1 to 95, got 0"),
    "updates": ([*TRAIN, "--reward", "dnc", "--loop.updates", "0"], "loop.updates must be at least 1"),
    "num": ([*SAMPLE, "--prompt", "x", "--num", "0"], "num must be at least 1, got 0"),
    "no prompt": (SAMPLE, "no prompts"),
    "empty prompt": ([*SAMPLE, "--prompt", " "], "empty --prompt"),
    "no prompt file": ([*SAMPLE, "--prompts", "nope.txt"], "no prompt file nope.txt"),
    "empty prompt file": ([*SAMPLE, "--prompts", "empty.txt"], "empty.txt has no prompts"),
    "binary prompt file": ([*SAMPLE, "--prompts", "binary.txt"], "binary.txt is not UTF-8"),
    "folder of prompts": ([*SAMPLE, "--prompts", "."], "no prompt file"),
    "reward's check": ([*TRAIN, "--reward", "mine:Picky", "--prompts", "unicorn.txt"], "never seen a unicorn"),
    "no gradient": ([*TRAIN, "--reward", "jpeg-compress"], "choose a differentiable reward"),
    "no adapter": ([*SAMPLE, "--prompt", "x", "--adapter", "nope"], "nope holds no adapter"),
    "output is a file": ([*TRAIN, "--reward", "mine:redness", "--out", "prompts.txt/run"], "prompts.txt"),
    "sample into a file": ([*SAMPLE, "--prompt", "x", "--out", "prompts.txt/out"], "prompts.txt is a file"),
    "sample into a full folder": ([*SAMPLE, "--prompt", "x", "--out", "."], "is not empty"),
    "nothing to resume": ([*TRAIN, "--reward", "mine:redness", "--resume"], "run is not there"),
    "no scene": (
        ["render", "nope.ply", "--out", "x.png"],
        "no scene file nope.ply; scenes that can be read: .ply (Gaussians), .safetensors",
    ),
    "no scene file": (["render", "prompts.txt", "--out", "x.png"], "prompts.txt is no scene by its name; those"),
    "extension": (
        ["render", "nope.ply", "--out", "x.bmp"],
        "unknown extension '.bmp'; use one of .png, .webp, .jpg, .jpeg, .gif, .mp4",
    ),
    "film": (["render", "nope.ply", "--out", "x.mkv"], "unknown extension '.mkv'"),
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


GREEDY = """

class Model(Toy):
    def load(self, device="cpu"):
        raise MemoryError("64 GiB")

def whole(views, prompts):
    import torch
    return redness(views, prompts) + torch.empty(1 << 60).sum()

def gpu(views, prompts):
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
"""
TRAINED = [*TRAIN, *SMALL]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([*TRAINED, "--reward", "mine:gpu"], "try --loop.batch-size 1 --loop.accumulate 2, or --method.scenes 1"),
        (
            [*TRAINED, "--reward", "mine:gpu", "--loop.batch-size", "1", "--method.chunk", "2", "--method.scenes", "1"],
            "try --method.chunk 1",
        ),
        ([*TRAINED, "--reward", "mine:whole", "--method", "draft"], "--loop.accumulate 2, or --method.scenes 1"),
        ([*SAMPLE, "--prompt", "x", "--model", "mine:Model"], "(64 GiB); try --batch-size 2, or --size 12"),
        ([*SAMPLE, "--prompt", "x", "--rewards", "mine:gpu", "--batch-size", "1", "--size", "1"], "give it less to do"),
    ],
    ids=["train", "chunk", "cpu", "sample", "nothing left"],
)
def test_out_of_memory_names_the_flags_that_help(here, capsys, args, words):
    (here / "mine.py").write_text(MINE + GREEDY)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("align3d: error: out of memory (") and line.endswith(words)


def test_a_published_generator_has_more_ways_to_need_less_memory():
    from align3d.cli import leaner
    from align3d.methods.nabla import Nabla
    from align3d.models.published import DiffSplatPAS

    parts = {"model": DiffSplatPAS(), "method": Nabla(scenes=0)}
    assert leaner(("train", None, parts)) == ["--model.recompute", "--model.decode-rows 1", "--method.scenes 1"]
    assert leaner(("train", None, {"model": DiffSplatPAS(recompute=True, decode_rows=1)})) == []
    assert leaner(("sample", None, parts)) == ["--model.decode-rows 1", "--method.scenes 1"]
    assert leaner(("embed", SimpleNamespace(batch_size=4, offload=False), parts))[-1] == "--offload"
    assert leaner(("embed", SimpleNamespace(batch_size=1, offload=True), {"model": DiffSplatPAS()})) == []
    assert leaner(None) == []
