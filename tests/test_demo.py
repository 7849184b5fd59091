"""`align3d demo` from end to end, on a small checkpoint in the place of the shipped one."""

import html
import json
import math
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_model import write_checkpoint

from align3d.commands.demo import Demo, prompt_lists, rewards, run
from align3d.rewards import REWARDS


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"), views=4)


@pytest.fixture
def out(weights, monkeypatch, tmp_path):
    """Where the demo is to write; not there yet."""
    monkeypatch.setattr("align3d.models.embedded.ASSETS", weights)
    return tmp_path / "runs" / "demo"


@pytest.fixture
def no_sampling(monkeypatch):
    """What is refused has to be refused before any model is judged."""

    def judged(*_, **__):
        raise AssertionError("judged a model")

    monkeypatch.setattr("align3d.evaluate.evaluate", judged)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_demo_shows_what_changed_and_never_writes_over_it(out, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/align3d", "demo", "--updates", "2", "--out", "my demo"])
    options = Demo(out=out, updates=2, prompts=2, seeds=2)
    run(options)
    again = html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert "align3d demo --updates 2 --out 'my demo'" in again
    shown = capsys.readouterr().out
    assert f"done: open {out / 'report.html'}" in shown

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for tensor in adapter.values())  # half of them were zero before training
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["model"]["name"], config["reward"]["name"], config["loop"]["updates"]) == (
        "embedded",
        options.reward,
        2,
    )

    _, held_out = prompt_lists(options.reward, rewards(options.reward), 2)
    report = (out / "report.html").read_text(encoding="utf-8")
    for text in (*rewards(options.reward), *held_out, "diversity", "align3d demo"):
        assert text in report, text
    for name in rewards(options.reward):  # a line of the table on the terminal
        assert f"| {name} | " in shown
    with Image.open(out / "before-after.png") as sheet:
        assert sheet.width > 4 * 128 and sheet.height > 128  # two prompts, each before and after, side by side

    before = contents(out)
    with pytest.raises(FileExistsError, match="not empty"):
        run(options)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("reward", "message"),
    [("colourfullness", ", ".join(sorted(REWARDS))), ("jpeg-compress", "differentiable")],
)
def test_reward_that_cannot_work_is_refused_at_once(out, no_sampling, reward, message):
    with pytest.raises(ValueError, match=message) as error:
        run(Demo(out=out, reward=reward))
    assert reward.replace("-", "") in str(error.value).lower().replace("-", "")  # by its name, or its class
    assert not out.exists()


def test_folder_that_cannot_be_written_is_refused_at_once(out, no_sampling):
    out.parent.parent.mkdir(exist_ok=True)
    out.parent.write_text("a file where a folder should be")
    with pytest.raises(ValueError, match="choose another"):
        run(Demo(out=out))
    assert out.parent.is_file()


def test_a_reward_of_the_users_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    function = "def redness(views, prompts):\n    return views.rgb[:, :, 0].mean((-2, -1))\n"
    (tmp_path / "my_demo_reward.py").write_text(function)
    assert next(iter(rewards("my_demo_reward:redness"))) == "my_demo_reward:redness"


@pytest.mark.parametrize("field", ["updates", "prompts", "seeds"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Demo(**{field: 0})


def test_prompts_to_judge_are_spread_held_out_and_known_to_every_judge():
    train, every = prompt_lists("any", {"any": object()}, 10_000)
    _, some = prompt_lists("any", {"any": object()}, 5)
    assert len(some) == 5 and set(some) < set(every)
    assert every.index(some[-1]) > len(every) // 2
    assert not set(train) & set(every)

    class OnlyRed:
        def check(self, prompts):
            if any("red" not in prompt for prompt in prompts):
                raise ValueError("only red things")

    lists = prompt_lists("red", {"none": object(), "red": OnlyRed()}, 10_000)
    assert all(lists) and all("red" in prompt for prompts in lists for prompt in prompts)
    lists = prompt_lists("any", {"any": object(), "red": OnlyRed()}, 10_000)
    assert lists[0] == train  # does not depend on the other judges
    assert lists[1] and all("red" in prompt for prompt in lists[1])
