"""Every recipe of GaussianCube trains as it is written, on a tiny checkpoint: its method, its reward, its options."""

import json
from pathlib import Path

import pytest
import tiny_clip
import tiny_gaussiancube as tiny
import torch
from command_checks import refused

from align3d import registry, samples
from align3d.cli import main
from align3d.models import MODELS
from align3d.pretrained import clip as pretrained
from align3d.recipes import nabla
from align3d.rewards import aesthetic

NAMES = [name for name, (_, _, model) in nabla.RECIPES.items() if model == "gaussiancube"]
SMALL = ["--model.steps", "3", "--model.precision", "float32", "--model.sampler", "ancestral", "--cameras.size", "16"]
SMALL += [
    "--model.voxels",
    "8",
    "--prompts",
    "text.txt",
    "--loop.updates",
    "1",
    "--loop.batch-size",
    "2",
    "--device",
    "cpu",
    "--out",
    "run",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of the generator and of the rewards that have files."""
    clip = tiny_clip.write_clip(tmp_path_factory.mktemp("clip"))
    torch.save(tiny_clip.aesthetic_stack(), clip / aesthetic.STACK)
    cube = tiny.write_cube(tmp_path_factory.mktemp("cube"), registry.load(MODELS, "gaussiancube"))
    yield {"gaussiancube": cube, "aesthetic": clip}
    for cached in (pretrained.sizes_of, pretrained.network, pretrained.tokenizer_of):
        cached.cache_clear()


def test_there_are_eight():
    assert sorted(NAMES) == sorted(
        f"{run}-{reward}-gaussiancube"
        for run in ("nabla-r2d3", "refl", "draft", "ddpo")
        for reward in ("aesthetic", "dnc")
    )
    assert all(nabla.VARIANTS[name] == ("paper",) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains(weights, tmp_path, monkeypatch, capsys, name):
    """One update: every sample pulls at the adapter, and what the recipe says is what the run has."""
    monkeypatch.chdir(tmp_path)
    for attribute in ("FRAMES", "SHOWN", "TURNED"):
        monkeypatch.setattr(samples, attribute, 1)
    Path("text.txt").write_text("a red mug\nthe dog\n")
    run, reward, _ = nabla.RECIPES[name]
    more = {"nabla-r2d3": ["--method.transitions", "2"], "ddpo": ["--loop.group", "2"]}.get(run, [])
    more += ["--reward.weights", str(weights[reward])] if reward in weights else []
    args = ["train", name, "--weights", str(weights["gaussiancube"]), *SMALL, "--loop.accumulate", "1", *more]
    assert main(args) == 0, capsys.readouterr().err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["recipe"] == {"name": name, "variant": "paper"}
    model = config["model"]
    assert [model[key] for key in ("name", "layers", "rank", "guidance")] == ["gaussiancube", "attention", 8, 3.5]
    assert (config["method"]["name"], config["reward"]["name"]) == (run.removesuffix("-r2d3"), reward)
    assert (config["loop"]["learning_rate"], config["noise"]) == (1e-4, 2e-3)
    (row,) = (json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines())
    assert row["grad_norm"] > 0 and row["dead"] == 0 and row["loss"] is not None
    assert Path("run/adapter/adapter_model.safetensors").is_file() and Path("run/report.html").is_file()


def test_there_is_no_released_variant(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a red mug\n")
    args = ["train", NAMES[0], "--weights", weights["gaussiancube"], *SMALL, "--variant", "released"]
    assert "has the variant paper, got 'released'" in refused(capsys, args)
