"""Parts in lists, with options of their own."""

import json
from pathlib import Path

import pytest
from command_checks import SAMPLE, enter, refused

from align3d.cli import main
from align3d.commands.listed import Listed, listed
from align3d.rewards.clip_tiny import ClipTiny
from align3d.rewards.colorfulness import Colorfulness
from align3d.rewards.dnc import DNC


def test_names_options_and_other_names():
    texts = ["dnc", "strict = dnc ( alpha = 0.99 , neighbours=False)", "clip-tiny(weights=a b/c)", "colorfulness()"]
    texts[1] = texts[1].replace(" = dnc (", "=dnc(")
    found = listed("reward", texts)
    assert found["dnc"] == Listed("dnc", DNC())
    assert found["strict"] == Listed("dnc", DNC(alpha=0.99, neighbours=False))
    assert found["clip-tiny"] == Listed("clip-tiny", ClipTiny(weights=Path("a b/c")))
    assert isinstance(found["colorfulness"].part, Colorfulness) and next(iter(found)) == "dnc"
    assert listed("features", ["inception(folder=x)"])["inception"].part.folder == Path("x")
    assert listed("reward", []) == {}


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("reward", "dnc(alpha=0.5", r"is no NAME, NAME\(option=value"),
        ("reward", "", "is no NAME"),
        ("reward", "dnc(beta=1)", "reward dnc has no option 'beta'; known: alpha, neighbours"),
        ("reward", "dnc(help=1)", "has no option 'help'"),
        ("reward", "dnc(0.5)", r"has no option '0\.5'"),
        ("reward", "dnc(alpha=lots)", r"reward dnc\(alpha=lots\): .*float"),
        ("reward", "dnc(alpha=2)", r"alpha must be in \[0, 1\), got 2"),
        ("reward", "nothing(a=1)", "unknown reward 'nothing'"),
        ("features", "inception", r"features inception needs folder: inception\(folder=\.\.\.\)"),
    ],
)
def test_what_cannot_be_read_is_told(kind, text, said):
    with pytest.raises(ValueError, match=said):
        listed(kind, [text])


def test_two_of_the_same_name_are_told_apart():
    with pytest.raises(ValueError, match=r"'dnc' is asked for twice; .* call it otherwise: mine=dnc\(alpha=0\.5\)"):
        listed("reward", ["dnc", "dnc(alpha=0.5)"])


def test_commands_take_them(tmp_path, monkeypatch, capsys):
    enter(tmp_path, monkeypatch)
    args = [*SAMPLE, "--prompt", "a red cube", "--rewards", "dnc", "loose=dnc(alpha=0.1)", "mine:redness"]
    assert main(args) == 0, capsys.readouterr().err
    rewards = json.loads(Path("out/samples.jsonl").read_text())["rewards"]
    assert list(rewards) == ["dnc", "loose", "mine:redness"]
    capsys.readouterr()
    said = refused(capsys, [*SAMPLE, "--out", "new", "--prompt", "a red cube", "--rewards", "dnc(alpha=7)"])
    assert "reward dnc(alpha=7): alpha must be in [0, 1), got 7.0" in said


def test_an_evaluation_may_go_on_with_options_that_change_no_number():
    from align3d.commands.judging import told

    slow, quick = (listed("reward", [f"vlm-judge(model=m, timeout={s})"])["vlm-judge"].part for s in (9, 90))
    other = listed("reward", ["vlm-judge(model=m, mark=geometry)"])["vlm-judge"].part
    assert told("vlm-judge", slow) == told("vlm-judge", quick) != told("vlm-judge", other)
    assert {"name", "model", "mark", "size"} == told("vlm-judge", slow).keys()
