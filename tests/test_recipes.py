"""Recipes of Nabla-R2D3: what they set, against the published tables; through the command line, with tiny weights."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from command_checks import refused
from test_published import words
from tiny_published import write_published
from tiny_text import write_texts

from align3d import recipes, registry, samples
from align3d.cli import main
from align3d.commands.train import Train
from align3d.models import published
from align3d.recipes import PARTS, RECIPES, nabla

BOTH = [(name, variant) for name, variants in nabla.VARIANTS.items() for variant in variants]
# method.beta, method.drift, loop.learning_rate, model.rank, model.guidance, azimuth_jitter, samples of an update
PUBLISHED = {
    ("nabla-r2d3-aesthetic-diffsplat-pas", "paper"): (2e6, 3e3, 1e-4, 16, 7.5, 60, 4),
    ("nabla-r2d3-hpsv2-diffsplat-pas", "paper"): (1e7, 5e3, 1e-4, 16, 7.5, 60, 8),
    ("nabla-r2d3-normal-diffsplat-pas", "paper"): (1e6, 1e4, 1e-4, 16, 7.5, 60, 8),
    ("nabla-r2d3-dnc-diffsplat-sd15", "paper"): (1e6, 1e4, 1e-4, 8, 7.5, 60, 8),
    ("nabla-r2d3-aesthetic-gaussiancube", "paper"): (2e6, 3e3, 1e-4, 8, 3.5, 60, 4),
    ("nabla-r2d3-dnc-gaussiancube", "paper"): (1e6, 1e4, 1e-4, 8, 3.5, 60, 8),
    ("nabla-r2d3-aesthetic-diffsplat-pas", "released"): (2e6, 3e3, 3e-4, 8, 5.0, 10, 4),
    ("nabla-r2d3-hpsv2-diffsplat-pas", "released"): (5e7, 5e3, 1e-4, 8, 5.0, 10, 8),
    ("nabla-r2d3-normal-diffsplat-pas", "released"): (1e6, 1e4, 5e-4, 8, 5.0, 30, 8),
    ("nabla-r2d3-dnc-diffsplat-pas", "released"): (5e5, 1e4, 5e-4, 8, 5.0, 10, 8),
}


@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_settings_are_those_of_the_paper_and_of_its_code(name, variant):
    recipe = recipes.get(name, variant)
    method, loop, model, cameras = (recipe.part(kind) for kind in ("method", "loop", "model", "cameras"))
    samples = loop.batch_size * loop.accumulate
    found = (method.beta, method.drift, loop.learning_rate, model.rank, model.guidance, cameras.azimuth_jitter, samples)
    assert found == PUBLISHED[name, variant]
    cube = "gaussiancube" in name
    assert (method.weight, method.transitions, method.jacobian) == ("paper", 20 if cube else 8, True)
    assert (loop.updates, loop.warmup, loop.max_grad_norm) == (400 if samples == 4 else 200, 0, 1.0)
    assert (model.alpha, model.layers, model.steps) == (8, *(("attention", 50) if cube else ("all", 20)))
    assert recipe.options["noise"] == 2e-3 and ("keep_above" in recipe.options) == ("dnc" in name and not cube)
    assert model.precision == ("float32" if "dnc" in name or cube else "bfloat16")


@pytest.mark.parametrize(("name", "variant"), BOTH)
def test_every_part_can_be_made_as_it_is_written(name, variant):
    recipe = recipes.get(name, variant)
    for kind, settings in recipe.settings.items():
        part = registry.load(PARTS[kind], settings.get("name", kind), kind)
        assert settings.keys() - {"name"} <= {f.name for f in fields(part)}, f"{kind} has no such options"
        made = recipe.part(kind)
        assert all(getattr(made, option) == value for option, value in settings.items() if option != "name")
    assert recipe.options.keys() <= {f.name for f in fields(Train)}
    loop = recipe.part("loop")
    assert loop.batch_size * loop.accumulate * loop.updates == 1600  # 100 epochs of 16 samples
    assert loop.group == (4 if name.startswith("ddpo") else 1)


def test_parts_take_options_of_the_caller():
    recipe = recipes.get("draft-dnc-diffsplat-sd15", "released")
    assert recipe.part("model", weights=Path("w"), guidance=1.0).guidance == 1.0
    recipe.settings["reward"]["alpha"] = 0.1
    assert recipes.get("draft-dnc-diffsplat-sd15", "released").settings["reward"]["alpha"] == 0.5
    with pytest.raises(ValueError, match="did you mean refl-dnc-diffsplat-pas"):
        recipes.get("refl-dnc-diffsplat-pass")
    with pytest.raises(ValueError, match="variants paper and released, got 'arxiv'"):
        recipes.get("refl-dnc-diffsplat-pas", "arxiv")


REWARD = '{"prompt": "%s", "reward": %s}\n'


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("weights"), "sd15")


@pytest.fixture
def here(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "FRAMES", 2)
    Path("prompts.txt").write_text("a red mug\na blue chair\nthe dog\n")
    Path("rewards.jsonl").write_text(
        "".join(REWARD % pair for pair in (("a red mug", 0.9), ("a blue chair", 0.8), ("the dog", 0.95)))
    )
    return weights


SMALL = ["--model.steps", "2", "--model.precision", "float32", "--cameras.size", "16", "--loop.updates", "2"]
SMALL += ["--loop.batch-size", "2", "--loop.accumulate", "1", "--prompts", "prompts.txt", "--out", "run"]


@pytest.mark.parametrize("name", ["nabla-r2d3-dnc-diffsplat-sd15", "ddpo-dnc-diffsplat-sd15"])
def test_a_recipe_trains(here, capsys, monkeypatch, name):
    monkeypatch.setattr(published.Published, "texts", lambda self, device, width, pooled=0: words("sd15"))
    monkeypatch.setattr(published.Published, "need_text", lambda self: None)
    group = ["--loop.group", "2"] if name.startswith("ddpo") else []
    args = ["train", name, "--variant", "released", "--weights", str(here), *SMALL, *group, "--device", "cpu"]
    assert main([*args, "--prompt-rewards", "rewards.jsonl"]) == 0, capsys.readouterr().err
    written = json.loads(Path("run/config.json").read_text())
    config = written["config"]
    assert config["recipe"] == {"name": name, "variant": "released"} and written["inputs"]["prompts"] == 2
    assert config["model"]["name"] == "diffsplat-sd15" and config["model"]["guidance"] == 5.0
    assert config["model"]["steps"] == 2 and config["reward"]["fov"] == 40.0 and config["noise"] == 2e-3
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)


def test_what_is_missing_or_wrong_is_refused(here, capsys):
    name = "nabla-r2d3-dnc-diffsplat-sd15"
    assert "did you mean nabla-r2d3-dnc-diffsplat-" in refused(capsys, ["train", "nabla-dnc-diffsplat", *SMALL])
    assert f"comes first: align3d train {name}" in refused(capsys, ["train", *SMALL, name])
    assert "is of a recipe, and there is none" in refused(capsys, ["train", "--variant", "paper", *SMALL])
    assert "--prompts" in refused(capsys, ["train", name, "--weights", here, "--out", "run"])
    assert "--keep-above 0.849 needs the prompts' rewards" in refused(
        capsys, ["train", name, "--weights", here, *SMALL]
    )
    assert "--model.weights is not given" in refused(
        capsys, ["train", "refl-dnc-diffsplat-sd15", *SMALL, "--keep-above", "None"]
    )


def test_rank_and_alpha_are_those_of_the_adapter_that_is_started_from(here, capsys, monkeypatch):
    monkeypatch.setattr(published.Published, "texts", lambda self, device, width, pooled=0: words("sd15"))
    monkeypatch.setattr(published.Published, "need_text", lambda self: None)
    first = ["train", "--model", "diffsplat-sd15", "--weights", str(here), "--reward", "dnc", *SMALL, "--device", "cpu"]
    assert main([*first, "--model.rank", "3", "--model.layers", "all", "--model.alpha", "5"]) == 0
    again = ["train", "refl-dnc-diffsplat-sd15", "--weights", str(here), *SMALL, "--device", "cpu", "--out", "again"]
    assert main([*again, "--keep-above", "None", "--model.adapter", "run"]) == 0, capsys.readouterr().err
    model = json.loads(Path("again/config.json").read_text())["config"]["model"]
    assert (model["rank"], model["alpha"], model["guidance"]) == (3, 5.0, 7.5)
    capsys.readouterr()
    third = [*again, "--keep-above", "None", "--out", "third", "--model.adapter", "none"]
    assert "none holds no adapter" in refused(capsys, third)


def test_another_model_keeps_its_own_options(here, capsys):
    """Settings are of the part that they are written for."""
    write_texts(Path("text"), {"": "t5"})
    args = ["train", "nabla-r2d3-dnc-diffsplat-pas", "--model", "embedded", "--keep-above", "None", *SMALL]
    args[args.index("--model.precision") :][:2] = []
    assert main([*args, "--prompts", "train", "--device", "cpu"]) == 0, capsys.readouterr().err
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert config["model"]["name"] == "embedded" and config["method"]["transitions"] == 8


def test_help_shows_what_a_recipe_sets(capsys):
    assert main(["train", "nabla-r2d3-dnc-diffsplat-pas", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: diffsplat-pas)" in shown and "(default: 1000000.0)" in shown and "(default: 0.849)" in shown
    assert main(["list", "recipes"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(RECIPES)
