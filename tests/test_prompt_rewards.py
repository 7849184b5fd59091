"""Prompts chosen by their rewards, from any of the files that have them; files that do not fit are refused."""

import json
import os

import numpy as np
import pytest

from align3d.prompt_rewards import keep_above


def test_keep_above(tmp_path):
    prompts = ["a", "b", "c", "b"]
    np.save(tmp_path / "r.npy", np.array([0.5, 0.9, 0.849, 2.0], dtype=np.float32))
    assert keep_above(prompts, tmp_path / "r.npy", 0.5) == ["b", "c", "b"]  # strictly greater
    rows = [{"prompt": "b", "reward": 1}, {"prompt": "a", "reward": 0.1}, {"prompt": "a", "reward": 0.5}]
    rows += [{"prompt": "c", "seed": 0, "rewards": {"dnc": 3.0}}, {"prompt": "other", "reward": 9.0}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert keep_above(prompts, tmp_path / "r.jsonl", 0.3) == ["b", "c", "b"]  # "a" has a mean of 0.3
    assert keep_above(prompts, tmp_path / "r.jsonl", 0.29) == prompts
    base = {"name": "base", "prompts": {"dnc": [0.5, 0.7, 0.6], "diversity": [9, 9, 9]}}
    tuned = {"name": "run", "prompts": {"dnc": [1, 1, 1]}}
    (tmp_path / "t.json").write_text(json.dumps({"prompts": ["a", "b", "c"], "results": [base, tuned]}))
    assert keep_above(prompts, tmp_path / "t.json", 0.5) == ["b", "c", "b"]


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("r.npy", np.zeros(3), r"each of 2 prompts, in their order, got float64 \(3,\)"),
        ("r.npy", np.zeros((2, 1)), r"\(2, 1\)"),
        ("r.npy", np.array(["a", "b"]), "got <U1"),
        ("r.npy", np.array([1.0, np.nan]), "nan for prompt 'b'"),
        ("r.npy", np.zeros(2), r"above 0.5; the highest .* is 0"),
        ("r.npy", np.array([Evil(), Evil()], dtype=object), "no .npy file of numbers"),
        ("r.npy", b"\x93NUMPY\x01\x00", "damaged"),
        ("r.npy", b"", "damaged"),
        ("r.jsonl", b'{"prompt": "a", "reward": 1}\n', "no reward for 1 of 2 prompts, first 'b'"),
        ("r.jsonl", b'{"prompt": "a", "reward": 1}\n{"prompt": "b"}\n', "line 2: expected"),
        ("r.jsonl", b'{"prompt": "a", "rewards": {"x": 1, "y": 2}}\n', "line 1: expected"),
        ("r.jsonl", b'{"prompt": "a", "reward": true}\n', "line 1: expected"),
        ("r.jsonl", b"[" * 50_000, "line 1: expected"),
        ("r.jsonl", b"\xff", "not UTF-8"),
        ("r.json", b'{"prompts": ["a"], "results": []}', "no table.json of align3d evaluate"),
        ("r.json", b'{"prompts": [], "results": [{"name": "base", "prompts": {"x": [], "y": []}}]}', "2 rewards"),
        ("r.txt", b"1", "must be a .npy or .jsonl"),
    ],
)
def test_rewards_that_do_not_fit(tmp_path, monkeypatch, name, value, said):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(value) if isinstance(value, bytes) else np.save(path, value, allow_pickle=True)
    with pytest.raises(ValueError, match=said):
        keep_above(["a", "b"], path, 0.5)
    assert not (tmp_path / "evil").exists()
