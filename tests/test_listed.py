"""Parts in lists, with options of their own."""

import json
from pathlib import Path

import pytest
from command_checks import SAMPLE, SMALL, TRAIN, enter, refused

from align3d.cli import main
from align3d.commands.listed import Listed, choose, entry, listed
from align3d.rewards import REWARDS
from align3d.rewards.clip_tiny import ClipTiny
from align3d.rewards.colorfulness import Colorfulness
from align3d.rewards.combined import Combined, Term
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
    assert {"name", "model", "of", "mark", "size"} == told("vlm-judge", slow).keys()


SUMS = {
    "dnc + 0.2*clip-tiny": {"dnc": (1, DNC()), "clip-tiny": (0.2, ClipTiny())},
    "  2 * dnc-1e-2*colorfulness": None,  # a name has dashes
    "2.5*dnc -1e-2 * colorfulness": {"dnc": (2.5, DNC()), "colorfulness": (-0.01, Colorfulness())},
    "-dnc(alpha=0.5)+.5*dnc": {"dnc": (-1, DNC(alpha=0.5)), "dnc-2": (0.5, DNC())},
    "1e+1*clip-tiny( weights = a (b) /c )": {"clip-tiny": (10, ClipTiny(weights=Path("a (b) /c")))},
}


@pytest.mark.parametrize("text", SUMS)
def test_sums_of_rewards(text):
    if SUMS[text] is None:
        with pytest.raises(ValueError, match="cannot go on from"):
            entry("reward", text)
        return
    label, one = entry("reward", text)
    assert label == one.name == "combined"
    assert {name: (term.weight, term.reward) for name, term in one.part.terms.items()} == SUMS[text]


def test_what_is_made_of_the_values_stands_in_square_brackets():
    text = (
        "mix = dnc(alpha=0.5)[views=min, subset=2, low=-1, high=0.9] + clip-tiny[normalise=running, span=5, warmup=3]"
    )
    label, part = choose("reward", text)
    low = Term(reward=DNC(alpha=0.5), views="min", subset=2, low=-1.0, high=0.9)
    tiny = Term(reward=ClipTiny(), normalise="running", span=5.0, warmup=3)
    assert label == "mix" and part == Combined({"dnc": low, "clip-tiny": tiny})
    assert choose("reward", "dnc[views=max]")[1] == Combined({"dnc": Term(reward=DNC(), views="max")})
    assert choose("reward", "dnc(alpha=0.5)") == ("dnc", DNC(alpha=0.5))
    assert all(choose("reward", name)[0] == name for name in REWARDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dnc dnc", "nor a sum of them, such as .*: cannot go on from 'dnc'"),
        ("dnc +", "cannot go on from '\\+'"),
        ("+ + dnc", "is no NAME"),
        ("0.5", "is no NAME"),
        ("dnc * 2", "cannot go on from '\\* 2'"),
        ("dnc[views=most]", r"reward dnc\[views=most\]: invalid choice 'most'"),
        ("dnc[alpha=0.5]", r"reward dnc has no option 'alpha' in \[\]; known: views, subset, normalise"),
        ("dnc[views=min", r"its \[ is not closed"),
        ("dnc[views=min][views=max]", "cannot go on from"),
        ("dnc[views=min, views=max]", "views is given twice"),
        ("dnc[low=1, high=0]", "low must be a number below high"),
        ("0*dnc + clip-tiny", "a weight must be finite and not 0, got 0"),
        ("1e999*dnc", "a weight must be finite"),
        ("x=y=dnc", "cannot go on from '=dnc'"),
        ("dnc + 2*nothing", "unknown reward 'nothing'"),
    ],
)
def test_sums_that_cannot_be_read_are_told(text, said):
    with pytest.raises(ValueError, match=said):
        choose("reward", text)


def test_nothing_but_rewards_is_added_up():
    with pytest.raises(ValueError, match="only rewards can be added up"):
        listed("features", ["inception(folder=x) + efficientnet"])


def test_commas_stand_between_parts_too():
    assert list(
        listed("reward", ["dnc(alpha=0.5, neighbours=False),clip-tiny", "a=dnc[views=min, low=0] + imagenet"])
    ) == [*("dnc", "clip-tiny", "a")]


@pytest.mark.parametrize(
    "text", ["fid=dnc", "diversity=dnc + clip-tiny", "dnc=clip-tiny + colorfulness", "dnc=clip-tiny"]
)
def test_names_that_mean_something_else_are_refused(text):
    with pytest.raises(ValueError, match="call it otherwise"):
        choose("reward", text)


def test_sample_scores_by_a_sum(tmp_path, monkeypatch, capsys):
    enter(tmp_path, monkeypatch)
    total = "mix=mine:redness + 0.5*mine:redness[views=min, warmup=9, subset=1]"
    args = [*SAMPLE, "--prompt", "a red cube", "--rewards", total, "all=1.5*mine:redness"]
    assert main(args) == 0, capsys.readouterr().err
    rewards = json.loads(Path("out/samples.jsonl").read_text())["rewards"]
    assert rewards["mix"] < rewards["all"], "full weight, the worst of all views"


def test_only_what_is_trained_on_can_be_normalised():
    with pytest.raises(ValueError, match="only what is trained on can be normalised; drop normalise here"):
        listed("reward", ["dnc[normalise=running]"])
    assert list(listed("reward", ["dnc[views=min]", "both=dnc + clip-tiny"])) == ["combined", "both"]


def test_a_sum_is_trained_on_watched_and_resumed(tmp_path, monkeypatch, capsys):
    enter(tmp_path, monkeypatch)
    total = "mix=mine:redness[normalise=running, subset=1] - 0.1*colorfulness[high=0.5, warmup=2]"
    args = [*TRAIN, *SMALL, "--reward", total, "--watch", "worst=mine:redness[views=min]", "--watch.features", "none"]
    args += ["--watch.prompts", "prompts.txt", "--watch.num", "2", "--watch.every", "1", "--watch.views", "2"]
    assert main([*args, "--loop.updates", "1"]) == 0, capsys.readouterr().err
    assert main([*args, "--loop.updates", "2", "--resume"]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert {"term_mine:redness", "term_colorfulness", "watch_mix", "watch_worst"} <= rows[1].keys()
    config = json.loads(Path("run/config.json").read_text())["config"]["reward"]
    assert config["name"] == "mix" and config["terms"]["colorfulness"]["weight"] == -0.1
    assert config["terms"]["mine:redness"]["reward"]["name"] == "mine:redness"
    capsys.readouterr()
    other = [total.replace("0.1*", "0.2*") if arg == total else arg for arg in args]
    said = refused(capsys, [*other, "--loop.updates", "3", "--resume"])
    assert "reward.terms.colorfulness.weight was -0.1, now -0.2" in said
