"""The published generators through the command line: prompts embedded, trained, sampled, measured; tiny weights."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tiny_published
from command_checks import refused
from safetensors.torch import load_file
from tiny_text import write_texts

from align3d import registry, samples
from align3d.cli import main
from align3d.models import MODELS

SMALL = ["--model.steps", "2", "--model.precision", "float32"]
TRAIN = ["--method", "nabla", "--method.transitions", "2", "--reward", "colorfulness", "--cameras.size", "16"]
TRAIN += ["--loop.updates", "2", "--loop.batch-size", "2", "--prompts", "prompts.txt", "--device", "cpu"]


TEXTS = {"pas": {"": "t5"}, "sd15": {"": "clip"}, "sd35m": {"": "pooled", "_2": "pooled", "_3": "t5"}}


def write(folder: Path, family: str) -> Path:
    """Files of a variant, with a text encoder that fits."""
    write_texts(folder / "text", TEXTS[family])
    part = registry.load(MODELS, f"diffsplat-{family}")(text=folder / "text")
    text = part.text_source(precision="float32")(["a"])
    sizes = {part.width: text.states.shape[-1]}
    sizes |= {} if text.pooled is None else {"pooled_projection_dim": text.pooled.shape[-1]}
    known = tiny_published.FAMILIES[family]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_published.FAMILIES, family, replace(known, config=known.config | sizes))
        tiny_published.write_published(folder / "weights", family)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with weights/ and text/ for each variant, written when it is asked for."""
    return cache(lambda family: write(tmp_path_factory.mktemp(family), family))


@pytest.fixture
def here(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "FRAMES", 2)
    Path("prompts.txt").write_text("a red mug\na blue chair\nthe dog\n")
    return folders("pas")


def model(published, *more, family="pas"):
    return ["--model", f"diffsplat-{family}", "--weights", str(published / "weights"), *SMALL, *more]


def embed(published, out="cache", *more, family="pas"):
    text = ["--model.text", str(published / "text")]
    prompts = ["--prompts", "prompts.txt", "--out", out, "--device", "cpu"]
    return ["embed", *model(published, *text, family=family), *prompts, *more]


@pytest.mark.parametrize("family", TEXTS)
def test_from_prompts_to_a_tuned_model(folders, here, capsys, family):
    files = folders(family)
    assert main(embed(files, family=family)) == 0, capsys.readouterr().err
    cached = model(files, "--model.cache", "cache", family=family)
    assert main(["train", *cached, *TRAIN, "--out", "run"]) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows) and Path("run/report.html").is_file()
    adapter = load_file("run/adapter/adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)

    assert main(["sample", "--adapter", "run", "--prompt", "the dog", "--out", "samples", "--device", "cpu"]) == 0
    assert len(list(Path("samples").glob("*.ply"))) == 1
    measure = ["--rewards", "colorfulness", "--features", "none", "--num", "1", "--size", "16", "--device", "cpu"]
    assert (
        main(["evaluate", "--runs", "end=run", "first=run@0", *measure, "--prompts", "prompts.txt", "--out", "e"]) == 0
    )
    found = {r["name"]: r["rewards"]["colorfulness"] for r in json.loads(Path("e/table.json").read_text())["results"]}
    assert found["base"] == found["first"] != found["end"]
    capsys.readouterr()

    least = min(json.loads(Path("e/table.json").read_text())["results"][0]["prompts"]["colorfulness"])
    table = ["--keep-above", str(least), "--prompt-rewards", "e/table.json"]
    assert main(["train", *cached, *TRAIN, *table, "--out", "chosen"]) == 0, capsys.readouterr().err
    assert json.loads(Path("chosen/config.json").read_text())["inputs"]["prompts"] == 2


def test_text_encoder_in_the_place_of_a_cache(here, capsys):
    text = model(here, "--model.text", str(here / "text"))
    assert main(["sample", *text, "--prompt", "a red mug", "--out", "samples", "--device", "cpu"]) == 0
    assert len(list(Path("samples").glob("*.ply"))) == 1


def test_a_prompt_that_is_not_read_to_its_end_is_told(here, capsys):
    Path("prompts.txt").write_text("a red mug " * 150)
    with pytest.warns(RuntimeWarning, match="at most 300 tokens of a prompt are read; the rest of 'a red mug a red"):
        assert main(embed(here)) == 0


def test_bad_input_is_refused(here, capsys):
    assert main(embed(here)) == 0
    capsys.readouterr()
    Path("other.txt").write_text("a prompt that nobody encoded\n")
    cached = model(here, "--model.cache", "cache")
    bad = [*TRAIN, "--prompts", "other.txt", "--out", "run"]
    assert "is not in the cache" in refused(capsys, ["train", *cached, *bad])
    assert "give --model.cache" in refused(capsys, ["train", *model(here), *TRAIN, "--out", "run"])
    sample = ["sample", "--model", "diffsplat-sd15", "--model.weights", "x", "--prompt", "a", "--out", "o"]
    assert "no folder" in refused(capsys, sample)
    Path("long.txt").write_text("a" * 10_000)
    assert "10000 characters" in refused(capsys, [*embed(here, "more"), "--prompts", "long.txt"])
    cleaned = ["train", *cached, "--model.clean-caption", *TRAIN, "--out", "run"]
    assert "clean False instead of True" in refused(capsys, cleaned)
    index = json.loads(Path("cache/cache.json").read_text())
    index["encoder"]["width"] = 4096
    Path("cache/cache.json").write_text(json.dumps(index))
    assert "prompt cache" in refused(capsys, ["train", *cached, *TRAIN, "--out", "run"])
