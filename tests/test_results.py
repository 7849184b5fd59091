"""Numbers of an evaluation, against their definitions."""

from dataclasses import replace

import pytest
import torch

from align3d.evaluate import Evaluation
from align3d.intervals import jackknife_error
from align3d.metrics import diversity, frechet_distance, leave_out, needed
from align3d.results import all_results, as_dicts, fid_text, markdown
from align3d.rng import stream

P, S, V, D = 6, 3, 2, 5
PROMPTS = tuple(f"a|{i}" for i in range(P))


def made(key, shift=0.0, seeds=(1, 2, 3)):
    scores = torch.randn((P, S, 2), generator=stream("scores"), dtype=torch.float64) + shift
    features = torch.randn((P, S, V, D), generator=stream(key)) + shift
    return Evaluation(PROMPTS, seeds, ("r", "q"), scores, None, features)


BASE, REFERENCE, TUNED = made("base"), made("reference", seeds=(4, 5, 6)), made("base", shift=0.5)


def base_result(base, reference):
    return all_results(base, reference, {})[0]


def tuned_result(name, tuned, base, reference):
    return all_results(base, reference, {name: tuned})[1]


def test_the_base_has_its_floor_and_no_change():
    got = base_result(BASE, REFERENCE)
    a, b = BASE.features.flatten(1, 2), REFERENCE.features.flatten(1, 2)
    assert got.fid.value == pytest.approx(frechet_distance(a.flatten(0, 1), b.flatten(0, 1)))
    assert got.fid.error == pytest.approx(jackknife_error(leave_out(a, b))) and got.changes == () and got.fid.above == 0
    assert (got.fid.high - got.fid.value) / got.fid.error == pytest.approx(2.571, abs=1e-3)  # t with 5 degrees
    assert got.numbers == {
        "r": got.rewards["r"],
        "q": got.rewards["q"],
        "fid": got.fid.value,
        "diversity": got.diversity,
    }
    assert got.rewards["q"] == pytest.approx(float(BASE.scores[..., 1].mean()))
    assert got.prompts["diversity"] == diversity(BASE.features).tolist()


def test_a_shift_is_found_with_its_size_and_sharper_in_pairs():
    got, base = tuned_result("tuned", TUNED, BASE, REFERENCE), base_result(BASE, REFERENCE)
    assert [c.name for c in got.changes] == ["r", "q"] and got.changes[0].change == pytest.approx(0.5)
    assert got.fid.above == pytest.approx(got.fid.value - base.fid.value) and got.fid.above > 0
    assert got.fid.above_low < got.fid.above < got.fid.above_high
    assert got.diversity_change.tuned == pytest.approx(got.diversity) and got.moved is None
    same = tuned_result("same", BASE, BASE, REFERENCE)
    assert (same.fid.above, same.fid.above_low, same.fid.above_high) == (0, 0, 0)


def test_what_was_not_measured_is_not_there():
    bare = replace(BASE, features=None)
    got = tuned_result("x", bare, bare, None)
    assert got.fid is None and got.diversity is None and set(got.prompts) == {"r", "q"} and fid_text(None) == "n/a"
    one = Evaluation(PROMPTS[:1], (1,), ("r",), torch.zeros(1, 1, 1).double(), None, BASE.features[:1, :1])
    got = base_result(one, replace(one, features=one.features + 1))
    assert got.diversity is None and got.fid.low is None and fid_text(got.fid).count(" ") == 0
    with pytest.raises(ValueError, match="different seeds"):
        tuned_result("x", REFERENCE, BASE, REFERENCE)


def test_tables_are_whole():
    results = [base_result(BASE, REFERENCE), tuned_result("my|run", TUNED, BASE, REFERENCE)]
    text = markdown(results, PROMPTS, {"my|run": "r"})
    widths = {len(line.replace("\\|", "").split("|")) for line in text.splitlines()[:4]}
    assert len(widths) == 1 and "my\\|run" in text and "| FID |" in text and text.count("a\\|0") == 3
    assert as_dicts(results)[1]["changes"][0]["name"] == "r"


def test_leaving_out_blocks():
    a, b = BASE.features.flatten(1, 2), REFERENCE.features.flatten(1, 2)
    values = leave_out(a, b, blocks=3)
    assert len(values) == 3
    assert float(values[1]) == pytest.approx(
        frechet_distance(a[[0, 1, 4, 5]].flatten(0, 1), b[[0, 1, 4, 5]].flatten(0, 1))
    )
    assert len(leave_out(a[:1], b[:1])) == 0 and jackknife_error(values[:1]) is None
    assert jackknife_error([1.0, 2.0, 6.0]) == pytest.approx((2 / 3 * (4 + 1 + 9)) ** 0.5)
    assert [needed(d) for d in (4, 5, 1280)] == [1, 2, 320]
