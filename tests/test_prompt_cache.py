"""Prompt caches: written in any number of starts, read by place, refused when they are not what they should be."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from command_checks import contents
from letters import POOLED, TOKENS, WIDTH, Letters

from align3d import distributed, embedding
from align3d.embedding import embed
from align3d.files import WriteError
from align3d.models import prompt_cache as reading
from align3d.models.prompt_cache import INDEX, PromptCache, open_cache, shard_name
from align3d.models.text import Text

PROMPTS = [f"{'very ' * (i % 4)}red thing number {i}" for i in range(20)] + ["ein grüner Würfel 🧊"]


class Ending(Letters):
    """One that is killed, or raises, at its n-th batch."""

    def __init__(self, batches: int, how):
        super().__init__()
        self.left, self.how = batches, how

    def __call__(self, prompts):
        self.left -= 1
        if self.left < 0:
            self.how()
        return super().__call__(prompts)


def make(out: Path, source=None, prompts=PROMPTS, **options) -> PromptCache:
    return embed(source or Letters(), prompts, out, **{"batch_size": 3, "shard": 7} | options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "cache"
    make(out)
    return out


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.parametrize(("pooled", "precision"), [(0, "float32"), (POOLED, "float32"), (POOLED, "bfloat16")])
def test_reads_what_the_source_gave(tmp_path, pooled, precision):
    """In another order, with repetitions, padding as it was; and the empty prompt, which nobody asked for."""
    cache, wanted = make(tmp_path / "c", Letters(pooled), precision=precision), ["", PROMPTS[20], *PROMPTS[5:8], ""]
    text, true = cache(wanted), Letters(pooled)(wanted)
    dtype = getattr(torch, precision)
    assert torch.equal(text.states, true.states.to(dtype).float()) and torch.equal(text.keep, true.keep)
    assert text.states.dtype == torch.float32
    assert (text.pooled is None) == (pooled == 0)
    assert not pooled or torch.equal(text.pooled, true.pooled.to(dtype).float())
    assert len(cache) == len(PROMPTS) + 1 and PROMPTS[3] in cache and "nothing" not in cache
    assert cache.identity == Letters.identity | {"tokens": TOKENS, "width": WIDTH, "pooled": pooled} | {
        "precision": precision
    }


def test_encodes_each_prompt_once_by_length(tmp_path):
    source = Letters()
    cache = make(tmp_path / "c", source, PROMPTS + PROMPTS[::-1])
    probe, *batches = source.seen
    flat = [prompt for batch in batches for prompt in batch]
    assert probe == [""] and sorted(flat) == sorted({"", *PROMPTS})
    assert [len(p) for p in flat] == sorted(len(p) for p in flat) and max(map(len, batches)) == 3
    tokens = sum(1 + len(p) % TOKENS for p in flat)
    assert sum(cache._shard(k).tensors["states"][1][0] for k in range(4)) == tokens < TOKENS * len(flat)  # no padding


def test_a_shard_in_the_making_holds_no_batches(tmp_path, monkeypatch):
    sizes = []

    def raw(tensor, real=embedding.raw):
        sizes.append((tensor.untyped_storage().nbytes(), tensor.nbytes))
        return real(tensor)

    monkeypatch.setattr(embedding, "raw", raw)
    make(tmp_path / "c")
    assert len(sizes) == 2 * (len(PROMPTS) + 1) and all(held == own for held, own in sizes)


def test_two_prompts_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    for module in (reading, embedding):
        monkeypatch.setattr(module, "hash_of", lambda prompt: len(prompt) % 2)
    cache = make(tmp_path / "c")
    assert torch.equal(cache(PROMPTS).states, Letters()(PROMPTS).states)
    assert "another" not in cache


def test_memory_is_let_go_and_few_files_are_open(made, monkeypatch):
    monkeypatch.setattr(reading, "OPEN", 2)
    cache = PromptCache.open(made)
    for prompt in PROMPTS:
        assert torch.equal(cache([prompt]).states, Letters()([prompt]).states)
        assert len(cache.shards) <= 2


@pytest.mark.parametrize("batches", [0, 1, 4, 8])
def test_a_killed_start_goes_on_to_the_same_bytes(made, tmp_path, batches):
    """The process ends in the middle of a shard, with no time for anything."""
    out = tmp_path / "c"
    child = os.fork()
    if child == 0:
        try:
            make(out, Ending(1 + batches, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (out / ".tmp-1-shard-00001.safetensors").write_bytes(b"half")
    before = contents(out)
    assert not (out / INDEX).exists()
    with pytest.raises(ValueError, match=rf"not finished, {batches // 3} of 4 shards"):
        open_cache(out)
    source = Letters()
    make(out, source)
    assert sum(map(len, source.seen)) - 1 == len(PROMPTS) + 1 - 7 * (batches // 3)  # what was there was not done again
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name.startswith("shard"))
    assert after == contents(made)


def test_finished_is_finished(copy):
    before, source = contents(copy), Letters()
    make(copy, source)
    assert source.seen == [[""]] and contents(copy) == before


def test_batches_of_another_size_go_on(made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c", Ending(5, lambda: (_ for _ in ()).throw(KeyboardInterrupt)))
    make(tmp_path / "c", batch_size=1)
    assert contents(tmp_path / "c") == contents(made)


def test_processes_share_the_shards(made, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "on_first", lambda action: None)
    encoder = embedding.describe(Letters(), None)
    monkeypatch.setattr(distributed, "gather", lambda value: [encoder, value])
    (tmp_path / "c").mkdir()
    source = Letters()
    with pytest.raises(FileNotFoundError):  # the first process has not come yet
        make(tmp_path / "c", source)
    assert [""] not in source.seen  # nor is it asked what it is: that may hash many GB
    assert sorted(contents(tmp_path / "c")) == [shard_name(1), shard_name(3)]
    shards = contents(tmp_path / "c")
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "on_first", lambda action: action())
    with pytest.raises(FileExistsError):
        make(tmp_path / "c")
    shutil.copy(made / "cache.json", tmp_path / "c")
    source = Letters()
    make(tmp_path / "c", source)
    assert contents(tmp_path / "c") == contents(made) and contents(tmp_path / "c").items() >= shards.items()
    assert sum(map(len, source.seen)) - 1 == 14


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": type("Other", (Letters,), {"identity": Letters.identity | {"weights": "xyz"}})()}, "weights 'abc'"),
        ({"source": Letters(pooled=0)}, r"encoder.pooled 2 instead of 0"),
        ({"precision": "bfloat16"}, "encoder.precision 'float32' instead of 'bfloat16'"),
        ({"prompts": PROMPTS[1:]}, "prompts '.*count 22 instead of 21"),
        ({"prompts": [*PROMPTS[1:], "one more"]}, "prompts '"),
        ({"shard": 8}, "shard 7 instead of 8"),
    ],
)
def test_another_cache_in_the_folder_is_refused(copy, change, named):
    before = contents(copy)
    with pytest.raises(ValueError, match=named):
        make(copy, **change)
    assert contents(copy) == before


def test_something_else_in_the_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        make(tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        make(tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_cache_for_another_model_is_refused(made):
    open_cache(made, {"encoder": "letters", "width": WIDTH, "unknown": 1})
    with pytest.raises(ValueError, match=r"another model: encoder 'letters' instead of 't5', width 3 instead of 4096"):
        open_cache(made, {"encoder": "t5", "width": 4096, "precision": "float32"})


def test_a_prompt_that_is_not_there(made):
    with pytest.raises(ValueError, match=r"'a cat' is not in the cache .*; add it to the file and run align3d embed"):
        open_cache(made)([PROMPTS[0], "a cat"])
    with pytest.raises(ValueError, match="10000 characters"):
        open_cache(made)(["x" * 10_000])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    """Change a number of the states, the size as before."""
    data = bytearray(path.read_bytes())
    mapped = reading.Mapped(path)
    data[mapped.tensors["states"][2] + 2] ^= 1
    path.write_bytes(data)


def header(path: Path, text: bytes) -> None:
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def rewrite(name: str, value):
    def change(path: Path) -> None:
        about = json.loads(path.read_text())
        about[name] = value
        path.write_text(json.dumps(about))

    return change


def resize(path: Path, name: str, value: int) -> None:
    rewrite("encoder", json.loads(path.read_text())["encoder"] | {name: value})(path)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("cache.json", Path.unlink, "no prompt cache"),
        ("cache.json", lambda p: p.write_text("[" * 100_000), "cache.json is damaged"),
        ("cache.json", lambda p: p.write_bytes(b"{}" + b" " * (1 << 20)), "cache.json is damaged"),
        ("cache.json", rewrite("count", -1), "count -1 instead of 0"),
        ("cache.json", rewrite("count", 23), "does not belong to cache.json"),
        ("cache.json", rewrite("count", 1 << 39), "count 549755813888 instead of 0 to 100000000"),
        ("cache.json", rewrite("shards", 1 << 39), "shards 549755813888 instead of 0 to 4"),
        ("cache.json", lambda p: resize(p, "tokens", 1 << 19), "tokens 524288 instead of 0 to 4096"),
        ("cache.json", lambda p: resize(p, "width", 1 << 19), "width 524288 instead of 0 to 65536"),
        ("cache.json", rewrite("format", "another 2"), "format 'another 2'"),
        (INDEX, cut, "index.safetensors is damaged"),
        (INDEX, lambda p: p.write_bytes(b""), "index.safetensors is damaged"),
        (INDEX, lambda p: header(p, b'{"hashes": {"dtype": "I64", "shape": [9e99], "data_offsets": [0, 8]}}'), "damag"),
        (INDEX, lambda p: header(p, b"[1]"), "damaged"),
        (shard_name(1), cut, r"shard-00001.safetensors has \d+ bytes instead of"),
        (shard_name(1), Path.unlink, "shard-00001.safetensors is missing"),
        (shard_name(1), flip, "shard-00001.safetensors is damaged at prompt .*checksum"),
    ],
)
def test_damage_is_one_clear_line(copy, name, damage, said):
    damage(copy / name)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        open_cache(copy)(PROMPTS)
    assert "\n" not in str(caught.value)


def test_damage_is_found_when_a_start_goes_on(copy):
    (copy / INDEX).unlink()
    (copy / shard_name(0)).write_bytes((copy / shard_name(2)).read_bytes())
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors has other prompts"):
        make(copy)
    cut(copy / shard_name(0))
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is damaged"):
        make(copy)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda text: Text(text.states * float("nan"), text.keep, text.pooled), "not finite for prompt"),
        (lambda text: Text(text.states, text.keep.flip(1), text.pooled), "padding before tokens"),
        (lambda text: Text(text.states[:, :, :2], text.keep, text.pooled), r"must give states \(3, 6, 3\)"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, wrong, said):
    class Wrong(Letters):
        def __call__(self, prompts):
            text = super().__call__(prompts)
            return wrong(text) if prompts != [""] else text

    with pytest.raises(ValueError, match=said):
        make(tmp_path / "c", Wrong())


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    import safetensors.torch

    def full(tensors, path, metadata=None, real=safetensors.torch.save_file):
        if "shard-00002" in str(path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(WriteError, match=r"shard-00002.safetensors: no space left"):
            make(tmp_path / "c")
    assert sorted(contents(tmp_path / "c")) == ["cache.json", shard_name(0), shard_name(1)]
    make(tmp_path / "c")
