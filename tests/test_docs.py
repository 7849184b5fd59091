"""What the documentation shows works as it stands."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from align3d.cli import main
from align3d.commands import COMMANDS
from align3d.models import embedded

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


def test_example_method_trains(here):
    assert (
        main(["train", *TOY, "--reward", "doc_mine:redness", "--method", "doc_mymethod:LastStep", "--method.scale=2"])
        == 0
    )


def test_example_model_has_flags(here, capsys):
    assert main(["sample", "--model", "doc_mymodel:MyModel", "--help"]) == 0
    assert "sampling steps (default: 20)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"align3d ([a-z]+)\b(?= |`|\n)", "\n".join(re.findall(r"`[^`\n]+`|^align3d .*$", text, re.M))
    ):
        assert name in COMMANDS, name
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.skipif(not embedded.ASSETS.is_dir(), reason="the embedded weights are not here")
def test_quick_start_runs(here):
    """The README's example, with fewer steps."""
    (code,) = blocks(ROOT / "README.md")
    for long, short in (("updates=60", "updates=1"), ("batch_size=6", "batch_size=2"), ("steps=20", "steps=3")):
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "README.md", "exec"), {})
    assert all((here / name).is_file() for name in ("lamp.png", "lamp.ply", "runs/colour/metrics.jsonl"))
