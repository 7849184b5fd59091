"""What the documentation shows works as it stands."""

import ast
import dataclasses
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from align3d.cli import main
from align3d.commands import COMMANDS
from align3d.commands.listed import listed
from align3d.commands.parts import MUST_HAVE
from align3d.models import embedded
from align3d.registry import load
from align3d.rewards import REWARDS
from align3d.scenes.files import READERS, Kind

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OF_REWARDS = sorted((ROOT / "docs/rewards").glob("*.md"))
FACTS = ("score", "looks at", "prompt", "GFLOP a view", "graph held", "files", "address", "licence")
HEADINGS = ("How it is computed", "Use", "Known to be hacked by", "Watch")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTIMIZE = ["optimize", "--prompt", "a red thing", "--out", "run", "--updates", "2", "--reward", "doc_mine:redness"]
OPTIMIZE += ["--prior", "doc_myprior:Grey", "--cameras.size", "16", "--loop.sample-every", "0", "--film.frames", "2"]
TOY = ["--model", "mine:Toy", "--out", "run", "--cameras.size", "16", "--loop.updates", "1", "--loop.batch-size", "2"]


def blocks(page: Path) -> list[str]:
    """The Python code on a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, with the files of docs/extending.md and a small model in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text((ROOT / "tests/user_parts.py").read_text(encoding="utf-8"))
    for code in blocks(ROOT / "docs/extending.md"):
        name = re.match(r"# file: (\w+)\.py\n", code)[1]
        (tmp_path / f"doc_{name}.py").write_text(code)
    for name in [name for name in sys.modules if name == "mine" or name.startswith("doc_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_parses_and_its_imports_exist(page):
    for code in blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("reward", ["doc_mine:redness", "doc_mine2:Thin"])
def test_example_rewards_train(here, reward):
    assert main(["train", *TOY, "--reward", reward]) == 0
    assert (here / "run/adapter/adapter_model.safetensors").is_file()


def test_example_model_trains_and_samples_by_its_own_sampler(here, monkeypatch, capsys):
    """On prompts of its own; the sampler is called as is said there, and its adapter makes a difference."""
    model = ["--model", "doc_dots:Dots", "--model.steps", "4"]
    assert main(["train", *model, *TOY[2:], "--reward", "doc_mine:redness"]) == 0, capsys.readouterr().err
    solve, calls = importlib.import_module("doc_dots").CloudModel.solve, []

    def watched(self, noise, cond, tell=None):
        found = solve(self, noise, cond, tell)
        calls.append((noise.dtype, torch.is_grad_enabled(), found.requires_grad))
        return found

    monkeypatch.setattr("doc_dots.CloudModel.solve", watched)
    clouds = []
    for out, adapter in (("base", []), ("again", []), ("tuned", ["--adapter", "run"])):
        sample = ["sample", *model, *adapter, "--prompt", "7", "--size", "16", "--frames", "0", "--out", out]
        assert main(sample) == 0, capsys.readouterr().err
        clouds.append(next(Path(out).glob("*.ply")).read_bytes())
    assert calls == [(torch.float32, False, False)] * 3 and clouds[0] == clouds[1] != clouds[2]
    assert main(["sample", *model, "--prompt", "a chair", "--out", "x"]) == 2
    assert "a prompt is the number of a class, 0 to 215; got 'a chair'" in capsys.readouterr().err


def test_example_method_trains(here):
    assert (
        main(["train", *TOY, "--reward", "doc_mine:redness", "--method", "doc_mymethod:LastStep", "--method.scale=2"])
        == 0
    )


def logged():
    """The rows of the run's metrics."""
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_example_distillation_optimises(here):
    """Two updates, with candidates; the prior answers every text alike, so that the classifier says nothing of it."""
    choose = ["--candidates", "2", "--weighting", "best", "--scene.num", "32"]
    assert main([*OPTIMIZE, "--method", "doc_csd:CSD", *choose, "--prior", "closed_prior:Ellipsoids"]) == 0
    assert [row["step"] for row in logged()] == [1, 2] and all(row["pull"] > 0 for row in logged())
    assert all({"reward_best", "t"} <= row.keys() for row in logged())
    assert main([*OPTIMIZE, "--method", "doc_csd:CSD", "--scene.num", "32", "--out", "grey"]) == 0
    rows = [json.loads(line) for line in Path("grey/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["pull"] for row in rows] == [0, 0]


def test_example_scene_is_optimised_scored_and_drawn(here, monkeypatch, capsys):
    blob = ["--scene", "doc_blob:BlobStart", "--cameras", "doc_above:Above", "--method.guidance", "1"]
    assert main([*OPTIMIZE, *blob]) == 0, capsys.readouterr().err
    centre, _, colour = json.loads(Path("run/scene.json").read_text(encoding="utf-8"))
    assert any(centre) and any(colour), "it has moved"
    assert all(row["pull"] > 0 and 0 < row["size"] < 1 for row in logged())
    score = ["score", "--results", "run", "--rewards", "doc_mine:redness", "--size", "12", "--out", "table"]
    capsys.readouterr()
    assert main(score) == 2
    assert "has scene.json, which is no scene by its name; those that can be read: .ply" in capsys.readouterr().err
    for args in (
        ["render", "run/scene.json", "--out", "x.png"],
        ["score", "run/scene.json", *score[3:5], "--prompt", "x"],
    ):
        assert main(args) == 2
        assert "run/scene.json is no " in capsys.readouterr().err
    (kind,) = re.findall(r"^    (\"\.json\"): (Kind\(.*\)),$", (ROOT / "docs/extending.md").read_text("utf-8"), re.M)
    assert kind == ('".json"', 'Kind("a blob", "align3d.scenes.blob:read")')
    monkeypatch.setitem(READERS, ".json", Kind("a blob", "doc_blob:read"))
    assert main(score) == 0, capsys.readouterr().err
    assert main(["score", "run/scene.json", *score[3:7], "--prompt", "x"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["render", "run/scene.json", "--out", "x.png", "--size", "24"]) == 0
    assert capsys.readouterr().out == "x.png  a blob\n"
    assert len(Image.open("x.png").convert("RGB").getcolors(4096)) > 50
    assert main(["render", "run/scene.json", "--out", "y.png", "--eps2d", "0.3"]) == 2
    Path("run/scene.json").write_text("[", encoding="utf-8")
    assert main(["render", "run/scene.json", "--out", "y.png"]) == 2
    assert "reading run/scene.json failed: JSONDecodeError" in capsys.readouterr().err


def test_example_density_drops_faint_gaussians(here):
    faint = ["--scene.density", "doc_prune:Prune", "--scene.density.first", "1", "--scene.density.every", "1"]
    faint += ["--scene.density.faint", "0.1", "--scene.num", "64", "--prior", "closed_prior:Ellipsoids"]
    assert main([*OPTIMIZE, *faint]) == 0
    assert 1 < logged()[-1]["gaussians"] < 64


def test_parts_that_can_be_given_are_in_the_docs():
    """What the errors of wrong parts point to is there."""
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for kind, must in MUST_HAVE.items():
        assert re.search(rf"^\| .*`--(scene\.)?{kind}` .*`{must}`", text, re.M), kind
    headings = {re.sub(r"[^a-z ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([a-z-]+)\)", text)) <= headings


def test_example_model_has_flags(here, capsys):
    assert main(["sample", "--model", "doc_mymodel:MyModel", "--help"]) == 0
    assert "sampling steps (default: 20)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"align3d ([a-z]+)\b(?= |`|\n)", "\n".join(re.findall(r"`[^`\n]+`|^align3d .*$", text, re.M))
    ):
        assert name in COMMANDS, name
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target


def named(page: Path) -> list[str]:
    """The rewards that a page is about, by its title."""
    return page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split(", ")


def commands(page: Path, name: str) -> list[list[str]]:
    """The words of the lines that run `align3d NAME` on a page; a line that ends in a backslash goes on."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True)[2:] for line in re.findall(rf"^align3d {name} .*$", text, re.M)]


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_has_a_page(name):
    index = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    pages = [page for page in OF_REWARDS if name in named(page)]
    assert len(pages) == 1, f"docs/rewards/ has {len(pages)} pages whose title names {name}; it needs one"
    assert f"[`{name}`](rewards/{pages[0].name})" in index, f"docs/rewards.md has no link to the page of {name}"


@pytest.mark.parametrize("page", OF_REWARDS, ids=lambda page: page.stem)
def test_pages_of_rewards_have_the_same_shape(page):
    text = page.read_text(encoding="utf-8")
    assert set(named(page)) <= REWARDS.keys()
    assert tuple(re.findall(r"^\| ([^|]+) \|", text[: text.index("## ")], re.M)) == FACTS
    assert tuple(re.findall(r"^## (.*)$", text, re.M)) == HEADINGS
    assert all(part.strip().splitlines()[1:] for part in text.split("\n## ")[1:]), "a section is empty"


@pytest.mark.parametrize("page", OF_REWARDS, ids=lambda page: page.stem)
def test_commands_of_rewards_are_understood(page):
    """Each page trains on its reward and scores by it, with options that there are."""
    names = set(named(page))
    trained = commands(page, "train")
    assert trained and all(words[words.index("--reward") + 1] in names for words in trained)
    scores = [words[words.index("--rewards") + 1 :] for words in commands(page, "score")]
    scores = [words[: next(i for i, word in enumerate(words) if word.startswith("--"))] for words in scores]
    used = {type(one.part) for words in scores for one in listed("reward", words).values()}
    parts = [load(REWARDS, name) for name in names]
    assert used & set(parts)
    fields = {field.name.replace("_", "-") for part in parts for field in dataclasses.fields(part)}
    for option in re.findall(r"--reward\.(?:no-)?([a-z-]+)", page.read_text(encoding="utf-8")):
        assert option in fields, option


@pytest.mark.skipif(not embedded.ASSETS.is_dir(), reason="the embedded weights are not here")
def test_quick_start_runs(here):
    """The README's example, with fewer steps."""
    (code,) = blocks(ROOT / "README.md")
    for long, short in (("updates=60", "updates=1"), ("batch_size=6", "batch_size=2"), ("steps=20", "steps=3")):
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {})
    assert all((here / name).is_file() for name in ("lamp.png", "lamp.ply", "runs/colour/metrics.jsonl"))
