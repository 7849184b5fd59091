"""`align3d compare`, from flags to files, on toy runs that train in a second."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from command_checks import contents, refused
from judged import MEASURE, PROMPTS, copy, furnish, table, train

from align3d import samples
from align3d.cli import main
from align3d.commands.compare import Compare, check_runs, group_of, read_runs, total, unlike, unmoved
from align3d.results import Distance

RUNS = ["runs/a0", "runs/a1", "runs/b0", "runs/b1"]
COMPARE = ["compare", *RUNS, *MEASURE, "--out", "out", "--group", "method.rho"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four runs: two seeds of a method, and their copies, which pass for another's."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        furnish(folder)
        patch.setattr(samples, "FRAMES", 2)
        for seed in (0, 1):
            train("--out", f"a{seed}", "--seed", str(seed))
            copy(folder / f"a{seed}", folder / f"b{seed}", method__rho=0.1)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A folder with copies of the runs, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    furnish(tmp_path)
    for name in ("a0", "a1", "b0", "b1"):
        shutil.copytree(trained / name, tmp_path / "runs" / name)
    return tmp_path


def test_runs_are_compared_at_equal_fid(here, capsys):
    args = [*COMPARE, "--points", "2", "--refine", "0"]
    assert main(args) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert "## mine:redness at equal fid" in shown.out and "over prompts" in shown.out
    got = table()
    assert got["trained_on"] == "mine:redness" and [m["of"] for m in got["matched"]] == ["mine:redness"]
    assert [(c["group"], c["seed"]) for c in got["curves"]] == [("0.05", 0), ("0.05", 1), ("0.1", 0), ("0.1", 1)]
    rows = [json.loads(line) for line in (here / "runs/b1/metrics.jsonl").read_text().splitlines()]
    curve = got["curves"][3]
    assert [point["step"] for point in curve["points"]] == [0, 2, 3]
    assert curve["points"][2]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert curve["points"][1]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows[:2]))
    assert curve["points"][2]["evaluations"] == pytest.approx(sum(row["evaluations"] for row in rows))
    assert curve["points"][0]["numbers"] == got["curves"][0]["points"][0]["numbers"]
    found = {row["name"]: row for row in got["results"]}
    assert len(found) == 1 + 4 * 2 and curve["points"][2]["numbers"]["fid"] == found["b1-000003"]["fid"]["value"]
    for level in got["matched"][0]["rows"]:
        assert level["seeds"] == 2 and level["low"] < level["value"] < level["high"]
        assert level["prompts"][0] < level["value"] < level["prompts"][1]
    assert len(found["base"]["blocks"]) == len(PROMPTS) and set(found["base"]["blocks"][0]) == {
        "mine:redness", "jpeg-compress", "fid", "diversity"
    }  # fmt: skip
    page = (here / "out/report.html").read_text()
    assert "mine:redness against FID" in page and "against seconds of training" in page and page.count("<img") == 4 * 5
    text = (here / "out/table.md").read_text()
    assert "### jpeg-compress" in text and "## jpeg-compress at equal" not in text

    whole = contents(here / "out")
    assert main(args) == 0
    assert contents(here / "out") == whole
    before = {name: data for name, data in whole.items() if name.startswith("sets/")}
    assert main([*COMPARE, "--points", "3", "--levels", "0.5"]) == 0  # more points, another level: nothing is lost
    after = contents(here / "out")
    assert {name: after[name] for name in before} == before
    assert table()["matched"][0]["levels"] == [0.5] and len(table()["results"]) == 1 + 4 * 3
    capsys.readouterr()
    assert "num was 3, now 4" in refused(capsys, [*COMPARE, "--num", "4"])


def test_runs_that_have_not_moved_are_named():
    def at(value, low):
        return Distance(value, 1.0, value - 2, value + 2, value - 40, low, 9.0)

    runs = {"a": [at(41.0, -1.0), at(50.0, 3.0)], "b": [at(42.0, 0.5), at(43.0, -0.5)]}
    assert unmoved(runs).startswith("1 of 2 runs are not surely farther from the base model")
    assert "each other (b), so" in unmoved(runs)
    assert unmoved({"a": runs["a"]}) == unmoved({"a": []}) == ""
    assert unmoved({"b": runs["b"]}).startswith("No run is surely farther")


def test_runs_are_refined_where_they_cross_the_level(here, capsys):
    args = [*COMPARE, "--points", "1", "--refine", "5"]
    assert main([*args[:-1], "0"]) == 0, capsys.readouterr().err
    assert [[p["step"] for p in curve["points"]] for curve in table()["curves"]] == [[0, 3]] * 4
    fids = [[p["numbers"]["fid"] for p in curve["points"]] for curve in table()["curves"]]
    level = fids[0][0] + 0.3 * (fids[0][1] - fids[0][0])
    assert main([*args, "--levels", str(level)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for wrong in ("1e9", "-5"):
        assert "levels must lie between " in refused(capsys, [*args, f"--levels={wrong}"])
    curve = table()["curves"][0]
    steps = [p["step"] for p in curve["points"]]
    i = next(i for i, p in enumerate(curve["points"]) if p["numbers"]["fid"] > level)
    assert len(steps) > 2 and steps[i] == steps[i - 1] + 1, "there is a checkpoint on each side, and none between"


def test_evaluate_says_the_same_of_a_checkpoint(here, capsys):
    assert main([*COMPARE[:2], *MEASURE, "--out", "out", "--points", "1"]) == 0, capsys.readouterr().err
    assert main(["evaluate", *MEASURE, "--out", "other", "--runs", "x=runs/a0@3"]) == 0
    mine, other = table()["results"][1], table("other")["results"][1]
    assert mine | {"name": "x"} == other


def test_without_features_runs_are_compared_at_equal_seconds(here, capsys):
    assert main([*COMPARE, "--features", "none", "--points", "1"]) == 0, capsys.readouterr().err
    assert table()["matched"][0]["by"] == "seconds" and table()["results"][0]["fid"] is None


def test_what_was_not_counted_is_left_out(here, capsys):
    file = here / "runs/a0/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row.pop("evaluations")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*COMPARE[:2], *MEASURE, "--out", "out", "--points", "1"]) == 0, capsys.readouterr().err
    page = (here / "out/report.html").read_text()
    assert "against seconds of training" in page and "against evaluations" not in page
    assert "NaN" not in (here / "out/table.json").read_text()
    assert math.isnan(total(rows, "evaluations", 2)) and math.isnan(total(rows[1:], "seconds", 2))


CHANGES = {
    "model": ({"config__model__steps": 9}, "trained with different models: model.steps"),
    "prompts": ({"inputs__prompts_blake2b": "x"}, "were trained on different prompts"),
    "reward": ({"config__reward__name": "dnc"}, "trained on different rewards, dnc and mine:redness"),
    "reward options": ({"config__reward__weight": 2}, "different rewards, mine:redness (weight 2) and mine:redness"),
    "more than the seed": ({"config__loop__learning_rate": 1.0}, "differ in more than the seed: loop.learning_rate"),
    "how to tell apart": ({"config__loop__learning_rate": 1.0}, "with --group method.rho loop.learning_rate"),
    "rank": ({"config__model__rank": 2}, "more than the seed: model.rank 2 and None; tell them apart with --group m"),
    "processes": ({"inputs__processes": 2}, "inputs.processes 2 and 1; tell them apart with --group method.rho inputs"),
    "the same seed": ({"config__loop__updates": 99}, "are both '0.05' with seed 0, which would count"),
    "adapter": ({"config__model__adapter": "x"}, "began with an adapter"),
    "no seed": ({"config__loop__seed": None}, "has no loop.seed"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_runs_that_do_not_belong_together_are_refused(here, capsys, case):
    changes, message = CHANGES[case]
    changes = {key.removeprefix("config__"): value for key, value in changes.items()}
    copy(here / "runs/a0", here / "runs/x", **changes)
    assert message in refused(capsys, ["compare", "runs/x", *COMPARE[1:]])


def groups(*runs, by):
    """The groups of runs that may be compared."""
    options = Compare(runs=tuple(map(Path, runs)), rewards=("jpeg-compress",), group=by, out=Path("out"))
    paths = list(read_runs(options))
    check_runs(paths, options.group)
    return [path.group for path in paths]


def test_what_changes_no_update_may_differ_in_a_group(here):
    changes = {"watch": {"rewards": ["jpeg-compress"], "every": 3}, "samples": {"frames": 9}, "device": "cuda"}
    copy(here / "runs/a0", here / "runs/x", loop__seed=7, **changes)
    assert groups("runs/x", "runs/a0", "runs/a1", by=("method.rho",)) == ["0.05"] * 3


def test_what_else_differs_can_tell_groups_apart(here):
    copy(here / "runs/a0", here / "runs/x", model__rank=2)
    copy(here / "runs/a0", here / "runs/y", model__rank=3, inputs__processes=2)
    by = ("model.rank", "inputs.processes")
    assert groups("runs/x", "runs/y", "runs/a0", by=by) == ["2 1", "3 2", "1"]


REFUSALS = {
    "no runs": (["compare", *MEASURE, "--out", "out"], "no runs; give the folders"),
    "no folder": (["compare", "nope", *MEASURE, "--out", "out"], "no run in nope"),
    "twice": (["compare", "runs/../runs/a0", *COMPARE[1:]], "is given twice"),
    "no checkpoints": (["compare", "runs/early", *COMPARE[1:]], "has no checkpoints of a trained adapter"),
    "group": ([*COMPARE, "--group", "method.weigth"], "no 'method.weigth' to group by; it has method."),
    "points": ([*COMPARE, "--points=-1"], "points must be at least 0"),
    "levels": ([*COMPARE, "--levels", "nan"], "levels must be finite"),
    "too few": ([*COMPARE, "--num", "2", "--max-prompts", "1", "--views", "1"], "an FID needs 3 images or more"),
    "damaged": (["compare", "runs/broken", *COMPARE[1:]], "config.json: damaged"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_before_any_work(here, capsys, case):
    copy(here / "runs/a0", here / "runs/early", loop__seed=7)
    shutil.rmtree(here / "runs/early/checkpoints")
    copy(here / "runs/a0", here / "runs/broken")
    (here / "runs/broken/config.json").write_text("{")
    args, message = REFUSALS[case]
    assert message in refused(capsys, args)


def test_a_group_is_named_by_the_fields_that_its_runs_have(tmp_path):
    known = {"method.name", "method.weight", "loop.seed"}
    nabla, refl = {"method.name": "nabla", "method.weight": "paper"}, {"method.name": "refl"}
    wanted = ["method", "method.weight"]
    assert [group_of(tmp_path, fields, wanted, known) for fields in (nabla, refl)] == ["nabla paper", "refl"]
    for fields, asked in ((refl, ["method.weight"]), (nabla, ["method", "method.nothing"])):
        with pytest.raises(ValueError, match=rf"no '{asked[-1]}' to group by; it has method.name"):
            group_of(tmp_path, fields, asked, known)


def test_names_are_short_and_all_different(tmp_path):
    folders = [tmp_path / name for name in ("x/run", "y/run", "z")]
    assert unlike(folders) == ["x-run", "y-run", "z"]
    with pytest.raises(ValueError, match="cannot be called 'x-run'"):
        unlike([*folders, tmp_path / "v/x/run"])
    with pytest.raises(ValueError, match="cannot be called 'base'"):
        unlike([tmp_path / "base"])
