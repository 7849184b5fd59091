"""Runs compared at equal forgetting: paths, levels, intervals over seeds, tables."""

import json
import math
import subprocess
import sys

import pytest

from align3d.intervals import t_quantile
from align3d.matched import Curve, Point, at, default_levels, floor, matched, place


def run(group, seed, fid, reward, **more):
    """A run with a checkpoint every 5 updates, a minute apart."""
    rows = enumerate(zip(fid, reward, strict=True))
    points = (
        Point(5 * i, 60.0 * i, 100 * i, {"fid": float(x), "r": float(y)} | {k: float(v[i]) for k, v in more.items()})
        for i, (x, y) in rows
    )
    return Curve(group, seed, tuple(points))


def line(group, seed, slope, end=60.0, fid=20.0, off=0.0):
    """A run whose reward is slope * (fid - floor) + off, in five checkpoints."""
    xs = [fid + (end - fid) * i / 4 for i in range(5)]
    return run(group, seed, xs, [0.0, *(slope * (x - fid) + off for x in xs[1:])])


HACKER = run("h", 0, [20, 30, 50, 90], [0.0, 1.0, 3.0, 2.0], dnc=[0.9, 0.8, 0.6, 0.2])


def test_between_checkpoints_everything_is_interpolated():
    found = place(HACKER, "seconds", 75.0, "r")
    assert found.value == pytest.approx(1.5) and not found.short
    root = (10**0.5 + (30**0.5 - 10**0.5) / 4) ** 2
    want = {"step": 6.25, "seconds": 75.0, "evaluations": 125.0, "fid": 20 + root, "r": 1.5, "dnc": 0.75}
    assert found.numbers == pytest.approx(want)
    assert place(HACKER, "fid", 20 + root, "r").numbers == pytest.approx(want)
    assert at(HACKER, "seconds", 30.0, "r") == pytest.approx(0.5)
    assert at(HACKER, "evaluations", 250, "dnc") == 0.9  # the base model's own
    assert at(HACKER, "step", 10, "r") == 3.0


def test_the_best_place_under_the_level_is_taken_and_the_first_crossing_if_asked_for():
    assert at(HACKER, "fid", 70.0, "r") == 3.0  # at 50; the reward fell after that
    assert at(HACKER, "fid", 70.0, "r", "first") == pytest.approx(3 - between(30, 50, 70))
    assert place(HACKER, "fid", 70.0, "r").numbers["fid"] == 50.0
    back = run("b", 0, [20, 60, 40, 80], [0.0, 1.0, 5.0, 6.0])  # comes back below 50 with a higher reward
    assert at(back, "fid", 50.0, "r") == pytest.approx(5 + between(20, 30, 60))
    assert at(back, "fid", 50.0, "r", "first") == pytest.approx((30 / 40) ** 0.5)
    assert at(back, "fid", 45.0, "r") == pytest.approx(5 + between(20, 25, 60))


def between(low, x, high):
    """Where a squared distance lies between two others, if the distance itself grows evenly."""
    return (x**0.5 - low**0.5) / (high**0.5 - low**0.5)


def test_a_run_that_moves_evenly_is_the_same_wherever_it_is_measured():
    """The reward rises with the distance, of which the FID has the square."""
    coarse, fine = ([math.sqrt(40) * i / n for i in range(n + 1)] for n in (2, 9))
    runs = [run("a", 0, [20 + x * x for x in xs], [3 * x for x in xs]) for xs in (coarse, fine)]
    for level in (21.0, 25.0, 33.0, 59.0):
        assert [at(r, "fid", level, "r") for r in runs] == pytest.approx([3 * math.sqrt(level - 20)] * 2)


def test_intervals_over_prompts_are_those_of_the_jackknife():
    def measured(g):
        """Two groups of two runs; without block g of the prompts everything is a little different, the floor too."""
        k, floor = 0.02 * (g - 1.5) if g is not None else 0.0, 20.0 + (g or 0.0)
        return [
            line(name, s, slope + k, fid=floor, end=floor + 40)
            for name, slope in (("a", 0.2), ("b", 0.1))
            for s in (0, 1)
        ]

    m = matched(measured(None), "r", levels=[60.0], without=[measured(g) for g in range(4)])
    means = [[40 * (slope + 0.02 * (g - 1.5)) for g in range(4)] for slope in (0.2, 0.1)]
    for row, parts in zip(m.rows, means, strict=True):
        error = (3 / 4 * sum((x - row.value) ** 2 for x in parts)) ** 0.5
        assert row.prompts == pytest.approx((row.value - 3.182446 * error, row.value + 3.182446 * error))
    (d,) = m.differences
    assert d.prompts == pytest.approx((4.0, 4.0)) and d.certain  # the blocks do the same to both
    assert "4.000 to 4.000 | 4.000 to 4.000 | yes |" in m.markdown().replace("+", "")
    apart = [line("b", s, 0.1 + 0.1 * (g - 1.5), fid=20, end=60) for g in range(4) for s in (0, 1)]
    wide = matched(
        measured(None), "r", levels=[60.0], without=[measured(None)[:2] + apart[2 * g : 2 * g + 2] for g in range(4)]
    )
    assert (
        wide.differences[0].low == pytest.approx(4.0) and not wide.differences[0].certain
    )  # over runs, not over prompts


def test_it_never_falls_as_the_level_rises():
    wild = run("w", 0, [20, 35, 28, 60, 45, 90, 20], [0, 2, -1, 3, 5, 1, 1])
    values = [at(wild, "fid", 20 + i / 1.4, "r") for i in range(100)]
    assert values == sorted(values) and values[0] == 1.0 and values[-1] == 5.0


def test_outside_of_the_path():
    assert place(HACKER, "fid", 19.0, "r") is None and math.isnan(at(HACKER, "fid", 19.0, "r"))
    far = place(HACKER, "fid", 200.0, "r")
    assert far.short and far.value == 3.0
    assert at(HACKER, "fid", 200.0, "r", "first") == 2.0  # its end
    assert not place(HACKER, "fid", 90.0, "r").short
    alone = run("b", 0, [20], [1.0])
    assert at(alone, "fid", 20.0, "r") == at(alone, "fid", 30.0, "r", "first") == 1.0
    dip = run("d", 0, [20, 15], [0.0, 1.0])  # below the floor by chance
    assert at(dip, "fid", 17.5, "r") == 1.0


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 9, 30, 101])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_t_quantiles_are_those_of_scipy(df, level):
    from scipy.stats import t

    assert t_quantile(df, level) == pytest.approx(t.ppf((1 + level) / 2, df), rel=1e-9)


def test_groups_have_means_and_t_intervals_over_their_seeds():
    from scipy.stats import t

    curves = [line("a", s, k) for s, k in ((0, 0.10), (1, 0.12), (2, 0.17))]
    (row,) = matched(curves, "r", levels=[50.0]).rows
    values = [3.0, 3.6, 5.1]
    error = (sum((v - 3.9) ** 2 for v in values) / 2 / 3) ** 0.5
    assert (row.group, row.seeds, row.short) == ("a", 3, 0)
    assert (row.value, row.error) == pytest.approx((3.9, error))
    assert (row.low, row.high) == pytest.approx(t.interval(0.95, 2, 3.9, error))
    assert row.numbers["seconds"] == pytest.approx(180.0)
    (one,) = matched(curves[:1], "r", levels=[50.0]).rows
    assert one.value == pytest.approx(3.0) and one.error is one.low is one.high is None


def test_differences_are_paired_where_the_seeds_agree():
    from scipy.stats import ttest_ind, ttest_rel

    a = [line("a", s, 0.20, off=o) for s, o in ((0, 0.0), (1, 2.0), (2, 4.1))]
    b = [line("b", s, 0.15, off=o) for s, o in ((2, 4.0), (0, 0.0), (1, 1.9))]  # in another order
    m = matched([*a, *b], "r", levels=[60.0])
    (d,) = m.differences
    x, y = ([at(c, "fid", 60.0, "r") for c in sorted(runs, key=lambda c: c.seed)] for runs in (a, b))
    assert (d.group, d.against, d.paired, d.certain) == ("a", "b", True, True)
    wanted = ttest_rel(x, y).confidence_interval()
    assert (d.low, d.high) == pytest.approx((wanted.low, wanted.high))

    c = [line("c", s, 0.15, off=o) for s, o in ((7, 4.0), (8, 0.0), (9, 1.9))]
    (d,) = matched([*a, *c], "r", levels=[60.0]).differences
    wanted = ttest_ind(x, y, equal_var=False).confidence_interval()  # between whole degrees of freedom; ours is wider
    assert not d.paired and not d.certain
    assert d.high - d.low == pytest.approx(wanted.high - wanted.low, rel=0.2)
    assert d.high - d.low >= wanted.high - wanted.low
    (d,) = matched([*a, c[0]], "r", levels=[60.0]).differences
    assert d.low is None and d.error is None and not d.certain


def test_seeds_without_any_spread_have_an_interval_of_width_zero():
    same = [line(g, s, k) for g, k, seeds in (("a", 0.2, (0, 1)), ("b", 0.1, (2, 3))) for s in seeds]
    (d,) = matched(same, "r", levels=[40.0]).differences
    assert (d.low, d.change, d.high) == pytest.approx((2.0, 2.0, 2.0)) and d.certain


def test_levels_reach_to_where_two_groups_are():
    two = [line("a", 0, 0.1, end=100.0), line("b", 0, 0.1, end=50.0), line("b", 1, 0.1, end=70.0)]
    assert default_levels(two) == pytest.approx((30.0, 40.0, 50.0, 60.0))
    assert default_levels(two, "seconds") == pytest.approx((60.0, 120.0, 180.0, 240.0))
    idle = [*two, line("still", 0, 0.1, end=22.0)]
    assert default_levels(idle) == pytest.approx((22.0, 30.0, 40.0, 50.0, 60.0))
    m = matched(idle, "r")
    assert {(r.level, r.short) for r in m.rows if r.group == "still"} == {
        (22.0, 0), (30.0, 1), (40.0, 1), (50.0, 1), (60.0, 1)
    }  # fmt: skip
    assert default_levels([line("a", 0, 0.1, end=20.0)]) == (20.0,)
    assert floor([line("a", 0, 1.0), line("b", 0, 1.0, fid=21.0)]) == 21.0


def test_rows_are_sorted_and_all_pairs_or_one_group_are_compared():
    curves = [line(g, s, k) for g, k in (("a", 0.1), ("b", 0.3), ("c", 0.2)) for s in (0, 1)]
    m = matched(curves, "r", levels=[60.0, 40.0])
    assert m.levels == (40.0, 60.0)
    assert [r.group for r in m.rows] == ["b", "c", "a"] * 2
    assert [(d.group, d.against) for d in m.differences] == [("b", "c"), ("b", "a"), ("c", "a")] * 2
    assert all(d.change > 0 for d in m.differences)
    m = matched(curves, "r", levels=[60.0], against="b")
    assert [(d.group, d.against, d.change < 0) for d in m.differences] == [("c", "b", True), ("a", "b", True)]


def test_a_level_below_the_base_of_one_run_has_no_mean():
    m = matched([line("a", 0, 1.0), line("a", 1, 1.0, fid=25.0), line("b", 0, 1.0)], "r", levels=[22.0])
    assert [(r.group, r.value) for r in m.rows] == [("b", pytest.approx(10 * (2 / 10) ** 0.5)), ("a", None)]
    assert m.differences == ()
    assert "| a | 2 | n/a |" in m.markdown()


def test_tables_hold_what_was_asked_for():
    curves = [line(g, s, k, end=e) for g, k, e in (("nabla|x", 0.1, 60.0), ("draft", 0.05, 35.0)) for s in (0, 1, 2)]
    m = matched(curves, "r", levels=[50.0])
    text = m.markdown(["seconds"])
    lines = text.splitlines()
    assert lines[0] == "| fid at most |  | runs | r | 95 % over runs | over prompts | seconds | unspent |"
    assert lines[2] == r"| 50.00 | nabla\|x | 3 | 3.000 | 3.000 to 3.000 |  | 180.00 |  |"
    assert lines[3] == "| 50.00 | draft | 3 | 0.750 | 0.750 to 0.750 |  | 240.00 | 3 of 3 |"
    assert not m.differences, "draft was never there"
    both = matched(curves, "r", levels=[30.0]).markdown().splitlines()
    assert any(line.startswith(r"| 30.00 | nabla\|x - draft | +") and line.endswith(" |  | yes |") for line in both)
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert widths == {9}
    assert json.loads(json.dumps(m.as_dict()))["rows"][1]["short"] == 3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Curve("a", 1, ()), "'a', seed 1 must begin with the base"),
        (lambda: Curve("a", 1, (Point(5, 1.0, 1, {}),)), "step 0"),
        (lambda: Curve("a", 1, (Point(0, 0.0, 0), Point(5, 1.0, 1), Point(5, 1.0, 1))), r"order of training.*5, 5"),
        (lambda: matched([], "r"), "nothing to compare"),
        (lambda: matched([HACKER, HACKER], "r"), "'h', seed 0 is there twice"),
        (lambda: matched([HACKER], "r", levels=[]), "levels of fid"),
        (lambda: matched([HACKER], "r", levels=[math.nan]), "finite"),
        (lambda: matched([HACKER], "r", against="k"), "no runs of 'k', only of h"),
        (lambda: matched([HACKER], "clip"), "no 'clip' at step 0; measured there: fid, r, dnc, step"),
        (lambda: at(run("a", 0, [20, math.nan], [0, 1]), "fid", 30.0, "r"), "no 'fid' at step 5"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_heavy_library_is_loaded():
    program = "import sys, align3d.matched; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
