"""What the comparison of methods says of its numbers, on made-up ones with a known verdict."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BLOCKS = 5


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def study(slopes, ends=None, noise=0.0, seeds=3, above=1.0):
    """Runs whose reward is slope times the distance, of which the FID above a floor of 40 has the square.

    Args:
        slopes: Method -> reward per unit of distance.
        ends: Method -> its distance at the end; 5 without.
        noise: What one block of prompts after the other changes in the slope of the first method, up and down.
        above: The lower end of the interval of the last FID above the floor.
    """
    from methods_page import Study

    curves, runs, results = [], {}, {}
    for k, (method, slope) in enumerate(slopes.items()):
        for seed in range(seeds):
            points = []
            for step in (0, 10, 20):
                x = (ends or {}).get(method, 5.0) * step / 20
                seen = {
                    "fid": 40 + x * x,
                    "r": (slope + 0.01 * seed) * x,
                    "moved": x / 10,
                    "dnc": 0.9,
                    "diversity": 0.1,
                }
                points.append({"step": step, "seconds": 9.0 * step, "evaluations": 8.0 * step, "numbers": seen})
                more = [noise * (g - 2) * x * (k == 0) for g in range(BLOCKS)]
                blocks = [{"fid": seen["fid"] + g, "r": seen["r"] + more[g]} for g in range(BLOCKS)]
                name = f"{method}-s{seed}-{step:06}" if step else "base"
                results[name] = {
                    "name": name,
                    "blocks": blocks,
                    "fid": {"value": seen["fid"], "above_low": above * step},
                }
            curves.append({"group": method.upper(), "seed": seed, "points": points})
            runs[f"{method}-s{seed}"] = {"group": method.upper(), "seed": seed, "folder": "x"}
    return Study("r", json.loads(json.dumps({"curves": curves, "runs": runs, "results": list(results.values())})))


def test_ahead_of_both():
    from methods_page import at_level, checks, verdict

    told = study({"nabla": 0.5, "refl": 0.3, "draft": 0.2, "ddpo": 0.1}, {"nabla": 4.0, "ddpo": 1.0})
    assert told.methods == ["nabla", "refl", "draft", "ddpo"] and told.compared == ["nabla", "refl", "draft"]
    assert told.levels == pytest.approx((48.0, 56.0))
    text, ahead = verdict(told)
    assert ahead and "**Nabla is ahead of both.**" in text and "at FID 56.00 (floor 40.00) nabla has 2.040" in text
    assert "refl 1.240, a difference of +0.800 (+0.800 to +0.800 over seeds, +0.800 to +0.800 over prompts)" in text
    assert checks(told).count("yes") == 3
    rows = list(at_level(told, told.levels[1]))
    assert len(rows) == 2 + 4 and len({row.count("|") for row in rows}) == 1
    assert rows[5].startswith("| ddpo | ends at FID 41.00 ± 0 |")
    assert rows[3].endswith("| +0.800 | +0.800 to +0.800 | +0.800 to +0.800 | yes |")


def test_behind_one_and_ahead_of_the_other():
    from methods_page import checks, verdict

    text, ahead = verdict(study({"nabla": 0.3, "refl": 0.5, "draft": 0.2}))
    assert not ahead and "**Nabla is ahead of draft and refl is ahead of nabla.**" in text
    assert "Own intervals over seeds apart: no" in checks(study({"nabla": 0.3, "refl": 0.5, "draft": 0.2}))


def test_not_told_apart_where_either_interval_is_wide():
    from methods_page import verdict

    text, ahead = verdict(study({"nabla": 0.5, "refl": 0.45, "draft": 0.1}, noise=0.02))
    assert not ahead and "**Nabla is ahead of draft and nabla is not told apart from refl.**" in text
    text, ahead = verdict(study({"nabla": 0.5, "refl": 0.3, "draft": 0.2}, seeds=1))
    assert not ahead and "**Nabla is not told apart from refl and draft.**" in text and "n/a over seeds" in text


def test_nothing_is_claimed_of_runs_that_have_not_moved():
    from methods_page import verdict

    text, ahead = verdict(study({"nabla": 0.5, "refl": 0.3, "draft": 0.2}, above=-1.0))
    assert not ahead and text.endswith("the runs have not moved enough to be compared.")
    text, _ = verdict(study({"nabla": 0.5, "refl": 0.3, "draft": 0.2}, {"refl": 0.0}))
    assert text.endswith("the runs have not moved enough to be compared.")


def test_ends_and_chart():
    from methods_page import at_end, chart

    told = study({"nabla": 0.5, "refl": 0.3, "draft": 0.2}, {"draft": 50.0})
    rows = list(at_end(told))
    assert "| nabla | 2.550 ± 0.050 | 65.00 ± 0 | n/a |" in rows[3] and "| 20 ± 0 | 160 ± 0 |" in rows[3]
    assert rows[2].startswith("| base | 0 | 40.00 |")
    drawn = chart(told)
    assert drawn.startswith("<svg xmlns") and drawn.count("<text") > 8 and ">draft</text>" in drawn
    assert drawn.count("translate(") == 3 * 3 + 3 * 3 + 3, "draft leaves the picture after the base"


def test_colours_are_replaced_one_at_a_time():
    from methods_page import COLOURS, recoloured

    found = recoloured("a blue chair with red legs")
    assert len(found) == len(set(found)) == 2 * (len(COLOURS) - 1) and "a pink chair with red legs" in found
    assert "a blue chair with red legs" not in found and recoloured("a chair") == []


def test_trainings_and_the_time_that_they_had(tmp_path):
    import methods

    size = methods.QUICK
    jobs = dict(methods.training(size, tmp_path))
    assert len(jobs) == len(size.rewards) * len(size.methods) * size.seeds
    folder = next(iter(jobs))
    assert "--loop.minutes" in jobs[folder] and not methods.finished(folder, size)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"seconds": s}) + "\n" for s in (20, 35)))
    (folder / "report.html").touch()
    assert not methods.finished(folder, size)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"seconds": s}) + "\n" for s in (20, 41)))
    assert methods.finished(folder, size)
    said = methods.about(size)
    assert "`draft`" in said and "`ddpo`" not in said and "{" not in said
