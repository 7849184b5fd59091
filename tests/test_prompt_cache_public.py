"""The public code's caches of T5 states, read as they are; and what is wrong with them in one line."""

import os
from pathlib import Path

import pytest
import torch

from align3d.models.prompt_cache import open_cache
from align3d.models.prompt_cache_public import PublicCache, lengths

D, PLACES = 4, 300
LINES = ["a red mug", "a blue dog", "", "the dog", "a red mug", "# a chair"]
CHUNKS = ((0, 4), (4, 6))  # as in the public code, but for the number of prompts in a chunk
COUNTS = [3, 299, 1, 2, 5, 300]


def states(line: int) -> torch.Tensor:
    return torch.randn(COUNTS[line], D, generator=torch.Generator().manual_seed(line))


def write(folder: Path, names=("00001-00004", "00005-00006")) -> Path:
    folder.mkdir()
    (folder / "captions.txt").write_bytes("\r\n".join(LINES).encode())
    for name, (first, last) in zip(names, CHUNKS, strict=True):
        mask = torch.zeros(last - first, PLACES, dtype=torch.int64)
        for row, line in enumerate(range(first, last)):
            mask[row, : COUNTS[line]] = 1
        torch.save(torch.cat([states(line) for line in range(first, last)]), folder / f"{name}prompt_embeds.pt")
        torch.save(mask.flatten(), folder / f"{name}prompt_attention_masks.pt")
    torch.save(torch.full((1, PLACES, D), 2.0), folder / "negative_prompt_embeds.pt")
    torch.save((torch.arange(PLACES) < 1).long()[None], folder / "negative_prompt_attention_mask.pt")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "cache")


@pytest.mark.parametrize("last", ["00005-00006", "00007-00006"])  # the second is what 6 prompts, a whole chunk, gave
def test_reads_rows_by_prompt(tmp_path, last):
    cache = open_cache(write(tmp_path / "c", ("00001-00004", last)), {"encoder": "t5", "weights": "any", "tokens": 300})
    prompts = ["# a chair", "a red mug", "", "the dog", "a blue dog"]
    text = cache(prompts)
    assert isinstance(cache, PublicCache) and text.states.shape == (5, PLACES, D)
    for row, line in ((0, 5), (1, 0), (3, 3), (4, 1)):
        assert torch.equal(text.states[row, : COUNTS[line]], states(line))
        assert text.keep[row].tolist() == [1.0] * COUNTS[line] + [0.0] * (PLACES - COUNTS[line])
        assert not text.states[row, COUNTS[line] :].any()
    assert text.keep[2].sum() == 1 and (text.states[2, 0] == 2).all()  # the negative prompt
    assert len(cache) == 5 and "the dog" in cache and "a cat" not in cache
    with pytest.raises(ValueError, match="'a cat' is not in the cache"):
        cache(["a cat"])


def test_a_cache_for_another_model_is_refused(folder):
    with pytest.raises(ValueError, match="width 4 instead of 4096"):
        open_cache(folder, {"encoder": "t5", "width": 4096})


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


def saved(value):
    return lambda path: torch.save(value, path)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("00001-00004prompt_embeds.pt", cut, r"prompt_embeds.pt is damaged \("),
        ("00001-00004prompt_embeds.pt", saved(Evil()), "holds more than tensors, which could run code"),
        ("00001-00004prompt_embeds.pt", saved({"a": torch.zeros(3)}), "one plain tensor, got dict"),
        ("00001-00004prompt_embeds.pt", saved(torch.zeros(1).expand(305, D)), "one plain tensor"),
        ("00001-00004prompt_embeds.pt", saved(torch.zeros(304, D)), r"must be \(305, 4\) by its mask"),
        ("00001-00004prompt_embeds.pt", saved(torch.full((305, D), float("nan"))), "not finite"),
        ("00001-00004prompt_embeds.pt", Path.unlink, "no chunk that begins with prompt 1"),
        ("00001-00004prompt_attention_masks.pt", Path.unlink, "prompt_attention_masks.pt is missing"),
        ("00001-00004prompt_attention_masks.pt", saved(torch.ones(3 * PLACES)), "must have 4 x 300 numbers"),
        ("negative_prompt_embeds.pt", lambda p: p.write_bytes(b""), r"negative_prompt_embeds.pt is damaged \("),
        ("negative_prompt_embeds.pt", saved(torch.zeros(PLACES, D)), r"must be \(1, 300, D\)"),
        ("captions.txt", lambda p: p.write_bytes(b"\xff\n"), "not UTF-8"),
        ("captions.txt", lambda p: p.write_text("one\ntwo\n"), "has 2 prompts, but chunks go up to 6"),
        ("captions.txt", Path.unlink, "must have one .txt file"),
    ],
)
def test_damage_is_one_clear_line(folder, monkeypatch, name, damage, said):
    monkeypatch.chdir(folder.parent)
    damage(folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        open_cache(folder)(["", "a red mug"])
    assert "\n" not in str(caught.value) and not Path("evil").exists()


def test_tokens_come_first():
    mask = torch.zeros(2, PLACES)
    mask[0, :2], mask[1, 5] = 1, 1
    with pytest.raises(ValueError, match="tokens must come before padding"):
        lengths(Path("mask.pt"), mask.flatten(), 2)
