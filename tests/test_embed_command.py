"""`align3d embed`: it writes what a model reads, and refuses what cannot be."""

import numpy as np
import pytest
import torch
from command_checks import contents, enter, refused
from letters import Letters

from align3d.cli import main
from align3d.models.prompt_cache import open_cache


@pytest.fixture
def here(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    (tmp_path / "own.py").write_text(
        "from letters import Letters\n"
        "class Options:\n"
        "    def text_source(self, device, precision, offload):\n"
        "        return Letters()\n"
        "    def load(self, device):\n"
        "        raise RuntimeError('not needed')\n"
    )
    return tmp_path


EMBED = ["embed", "--model", "own:Options", "--prompts", "prompts.txt", "--device", "cpu", "--out", "cache"]


def test_the_command_writes_what_a_model_reads(here, capsys):
    assert main(EMBED) == 0
    assert "written: cache, 3 prompts with the empty one" in capsys.readouterr().out
    prompts = ["a longer prompt of a blue ball", "", "a red cube"]
    assert torch.equal(open_cache(here / "cache")(prompts).states, Letters()(prompts).states)
    before = contents(here)
    assert main(EMBED) == 0 and contents(here) == before
    np.save("r.npy", np.array([2.0, 1.0]))
    assert main([*EMBED[:-1], "few", "--keep-above", "1", "--rewards", "r.npy"]) == 0
    few = open_cache(here / "few")
    assert len(few) == 2 and "a red cube" in few


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has no prompts"),
        (b"# nothing\n\n", "has no prompts"),
        (b"caf\xe9\n", "not UTF-8"),
        (b"a red\0mug\n", "has NUL bytes in it"),
        (b"x" * 10_000, "has 10000 characters, at most 2000"),
    ],
)
def test_the_command_refuses_bad_prompts(here, capsys, data, said):
    (here / "prompts.txt").write_bytes(data)
    assert said in refused(capsys, EMBED)
    assert not (here / "cache").exists()


def test_the_command_refuses_another_start(here, capsys):
    assert main(EMBED) == 0
    capsys.readouterr()
    assert "precision 'float32' instead of 'bfloat16'" in refused(capsys, [*EMBED, "--precision", "bfloat16"])
    assert "--keep-above 1.0 needs the prompts' rewards" in refused(capsys, [*EMBED, "--keep-above", "1"])
    assert "batch_size" in refused(capsys, [*EMBED, "--batch-size", "0"])
    assert "no text encoder" in refused(capsys, ["embed", "--model", "mine:Toy", *EMBED[3:-1], "new"])
