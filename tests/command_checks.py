"""What the tests of the command line have in common: the user's folder, and how a command must refuse."""

import sys
from pathlib import Path

import pytest

from align3d.cli import main

MINE = Path(__file__).with_name("user_parts.py").read_text(encoding="utf-8")
TRAIN = ["train", "--model", "mine:Toy", "--prompts", "prompts.txt", "--out", "run", "--cameras.size", "16"]
SMALL = ["--loop.updates", "2", "--loop.batch-size", "2", "--loop.checkpoint-every", "1"]
SAMPLE = ["sample", "--model", "mine:Toy", "--out", "out", "--size", "24", "--frames", "3"]


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the current one, with the user's module and some prompts in it."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (folder / "mine.py").write_text(MINE)
    (folder / "prompts.txt").write_text("# toys\na red cube\n\na longer prompt of a blue ball\n")
    return folder


def with_small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what commands draw at their end be small, for tests of other things."""
    from align3d.scenes.pictures import turntable

    for name, value in (("SIZE", 24), ("SIDE", 24), ("FRAMES", 2)):
        monkeypatch.setattr(f"align3d.previews.{name}", value)
    monkeypatch.setattr("align3d.scenes.pictures.turntable", lambda scene, *_, **more: turntable(scene, 2, 24, **more))


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
