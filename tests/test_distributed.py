"""Two processes, with two rollouts each, give the update that one process gives with all the rows in one batch."""

import json
import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS, SMALL, FakeMethod, FakeModel, FakeScore, steady, weights
from pairs import alone_and_in_pair, run_script

from align3d import distributed
from align3d.log import read_metrics
from align3d.loop import fit


class Loud(FakeMethod):
    """Sends a gradient to `rare` from the second process's rows alone, and measures something else there."""

    def prepare(self, *args):
        ready = super().prepare(*args)
        return replace(ready, scale=ready.scale * (1 + distributed.rank()))  # as on GPUs that sum in another order

    def losses(self, model, score, times, prompts, rng):
        for step in super().losses(model, score, times, prompts, rng):
            share = sum(key[2] % 4 >= 2 for key in rng.keys) / len(rng)
            yield replace(step, loss=step.loss + share * model.adapter.rare.sum()) if share else step


def process(root: Path, rank: int, world: int) -> None:
    """One of `world` processes that train on eight rows together, started with different adapters."""
    model, seen = FakeModel(seed=rank), []
    loop, out = replace(SMALL, batch_size=8 // world**2, accumulate=world, sample_every=3), root / f"world-{world}"
    hooks = [lambda done, model: seen.append(done)]
    rows = fit(model, Loud(), FakeScore(), PROMPTS, loop, out=out, hooks=hooks, progress=False)
    found = {"weights": weights(model), "rows": rows, "hooks": seen}
    uneven = {"both": 1.0 + rank, "seconds": 1.0 + rank, "evaluations": 3.0, "hole": [math.nan, 4.0][rank]}
    found["joined"] = distributed.joined({"a": [[rank, None]], "b": [{"x": rank}]})
    found["uneven"] = distributed.average_numbers(uneven | {f"own-{rank}": 5.0 + rank})
    try:
        distributed.require_same(["same", rank], "they differ")
    except ValueError as error:
        found["differ"] = str(error)
    try:
        fit(model, Loud(), FakeScore(), PROMPTS, loop, out=out, progress=False)
    except (FileExistsError, RuntimeError) as error:
        found["refused"] = type(error).__name__
    (root / f"{world}-{rank}.json").write_text(json.dumps(found))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    run_script(__file__, tmp_path)
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("1-0.json", "2-0.json", "2-1.json"))
    assert first["weights"] == second["weights"]
    assert first["weights"] != weights(FakeModel())
    assert first["weights"]["rare"] != [1.0, 1.0] == first["weights"]["unused"]
    for name, values in one["weights"].items():
        torch.testing.assert_close(torch.tensor(first["weights"][name]), torch.tensor(values), rtol=0, atol=1e-6)
    assert (
        steady(first["rows"]) == steady(second["rows"]) == steady(read_metrics(tmp_path / "world-2" / "metrics.jsonl"))
    )
    for row, other in zip(steady(one["rows"]), steady(first["rows"]), strict=True):
        assert other == pytest.approx(row, abs=1e-5)
    assert first["hooks"] == one["hooks"] == [0, 3, 6] and second["hooks"] == []
    want = {"both": 1.5, "seconds": 2.0, "evaluations": 6.0, "hole": 4.0, "own-0": 5.0, "own-1": 6.0}
    assert first["uneven"] == second["uneven"] == want
    assert first["joined"] == second["joined"] == {"a": [[0, None], [1, None]], "b": [{"x": 0}, {"x": 1}]}
    assert first["differ"] == second["differ"] == "they differ" and "differ" not in one
    assert first["rows"][0]["evaluations"] == one["rows"][0]["evaluations"] == 16 + 8  # 8 of them to prepare
    assert (first["refused"], second["refused"]) == ("FileExistsError", "PeerError")


def test_each_process_of_a_machine_has_a_gpu_of_its_own():
    assert [distributed.choose_gpu({"LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": "3"}, 4) for i in range(3)] == [0, 1, 2]
    assert distributed.choose_gpu({"LOCAL_RANK": "1"}, 2) == 1
    with pytest.raises(ValueError, match="3 processes on this machine, but 2 GPUs, and each needs its own; start at m"):
        distributed.choose_gpu({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}, 2)
    with pytest.raises(ValueError, match="2 processes on this machine, but 1 GPU, "):
        distributed.choose_gpu({"LOCAL_RANK": "1"}, 1)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "an hour"])
def test_a_timeout_is_a_number_of_minutes(text):
    assert distributed.patience("0.5") == 0.5
    with pytest.raises(ValueError, match="ALIGN3D_TIMEOUT must be a number of minutes, above 0, got"):
        distributed.patience(text)


def test_alone_everything_is_the_identity():
    value = torch.ones(2)
    assert distributed.average(value) is value
    assert (distributed.rank(), distributed.world(), distributed.anyone(True)) == (0, 1, True)
    assert distributed.on_first(lambda: 3) == 3
    numbers = {"seconds": 1.0, "nothing": math.nan}
    assert distributed.average_numbers(numbers) is numbers and distributed.largest(3) == 3
    assert distributed.joined({"a": [numbers]}) == {"a": [numbers]}
    distributed.require_same(1, "never")
    assert distributed.stop()
    assert not distributed.active() and asdict(SMALL)["seed"] == 0


if __name__ == "__main__":
    alone_and_in_pair(process, Path(sys.argv[1]))
