"""Names to objects, and the one line that a wrong name gets."""

import sys

import pytest

from align3d import registry

TABLE = {"path": "pathlib:Path", "gone": "no_such_module_anywhere:Thing"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to import modules from."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_and_paths():
    from pathlib import Path

    assert registry.load(TABLE, "path") is Path
    assert registry.load(TABLE, "pathlib:PurePath") is Path.__mro__[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("paht", r"unknown reward 'paht'; known: gone, path, or give package\.module:attribute"),
        ("gone", "reward 'gone' needs the module 'no_such_module_anywhere', which is not installed"),
        ("no_such_module_anywhere.deep:x", "needs the module 'no_such_module_anywhere'"),
        ("pathlib:Pth", "module 'pathlib' has no attribute 'Pth'"),
        (".x:y", r"reward '\.x:y' is no package\.module:attribute; known: gone, path"),
        ("..:y", "is no package"),
        (":y", "is no package"),
        ("pathlib:", "is no package"),
        ("path lib:Path", "is no package"),
        ("pathlib:Path:x", "is no package"),
    ],
)
def test_a_wrong_name_gets_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        registry.load(TABLE, name, "reward")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import math\nmath.no_such_function()\n", r"AttributeError: .*no_such_function.* \(broken_part\.py:2\)$"),
        ("\n\ndef red(views:\n", r"SyntaxError: .* \(broken_part\.py:3\)$"),
        ("import json\n\njson.loads('x')\n", r"JSONDecodeError: .* \(broken_part\.py:3\)$"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(broken_part\.py:1\)$"),
    ],
)
def test_a_mistake_in_the_users_module_is_told_with_its_line(here, code, message):
    (here / "broken_part.py").write_text(code)
    with pytest.raises(ValueError, match="reward 'broken_part:Mine' cannot be imported: " + message) as caught:
        registry.load(TABLE, "broken_part:Mine", "reward")
    assert caught.value.__cause__ is not None


def test_a_bug_of_our_own_is_no_mistake_of_the_user(monkeypatch):
    def broken(name):
        raise ZeroDivisionError

    monkeypatch.setattr(registry.importlib, "import_module", broken)
    with pytest.raises(ZeroDivisionError):
        registry.load({"mine": "align3d.rewards.mine:Mine"}, "mine")
    with pytest.raises(ZeroDivisionError), registry.blame("reward jpeg-compress", registry.load):
        raise ZeroDivisionError


def test_code_that_exits_is_a_mistake_too():
    with pytest.raises(ValueError, match="reward mine failed: SystemExit: 0"), registry.blame("reward mine", None):
        raise SystemExit(0)


@pytest.mark.parametrize("error", [FloatingPointError, MemoryError, KeyboardInterrupt])
def test_what_is_no_mistake_in_code_passes(error):
    with pytest.raises(error), registry.blame("reward mine", None):
        raise error


def test_a_module_that_the_users_module_misses_is_named(here):
    (here / "needy_part.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(ValueError, match="'needy_part:Mine' needs the module 'no_such_module_anywhere'"):
        registry.load({}, "needy_part:Mine", "model")
