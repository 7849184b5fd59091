"""GaussianCube through the command line, on tiny checkpoints: of texts, of classes, and without condition."""

import json
from functools import cache
from pathlib import Path

import pytest
import tiny_gaussiancube as tiny
import torch
from command_checks import refused
from PIL import Image
from safetensors.torch import load_file

from align3d import registry, samples
from align3d.cli import leaner, main
from align3d.methods.nabla import Nabla
from align3d.models import MODELS
from align3d.scenes.ply import read_ply

NAMES = {"text": "gaussiancube", "class": "gaussiancube-omniobject3d", "nothing": "gaussiancube-shapenet-car"}
PROMPTS = {"text": "a red mug\nthe dog\n", "class": "mug\n4\n", "nothing": "unconditional\n"}
SIDE = 4  # voxels
CPU = ["--device", "cpu"]
SMALL = ["--model.steps", "2", "--model.precision", "float32", "--model.rank", "2", "--model.voxels", str(SIDE)]
QUICK = ["--model.sampler", "ancestral"]  # the published ones take many more passes
TRAIN = ["--reward", "colorfulness", "--cameras.size", "16", "--loop.batch-size", "2", *CPU]
METHODS = {
    "nabla": ["--method", "nabla", "--method.transitions", "2"],
    "refl": ["--method", "refl"],
    "draft": ["--method", "draft"],
    "ddpo": ["--method", "ddpo", "--loop.group", "2"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    def written(kind, name):
        return tiny.write_cube(tmp_path_factory.mktemp(kind), registry.load(MODELS, name), tiny.KINDS[kind], SIDE)

    return cache(lambda kind, name=None: written(kind, name or NAMES[kind]))


@pytest.fixture
def here(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "FRAMES", 2)
    monkeypatch.setattr(samples, "SHOWN", 1)
    monkeypatch.setattr(samples, "TURNED", 1)
    Path("classes.json").write_text('{"mug": 1, "dog": 4}')
    for kind, prompts in PROMPTS.items():
        Path(f"{kind}.txt").write_text(prompts)
    return folders


def model(folders, kind, *more):
    named = ["--model.classes", "classes.json"] if kind == "class" else []
    return ["--model", NAMES[kind], "--weights", str(folders(kind)), *SMALL, *named, *more]


def train(folders, kind, method, *more):
    prompts = "unconditional" if kind == "nothing" else f"{kind}.txt"
    given = [*METHODS[method], *TRAIN, "--prompts", prompts, "--loop.updates", "2", *more]
    return ["train", *model(folders, kind, *QUICK), *given]


def ran(capsys, args):
    """Run a command that must go well; what it said."""
    code, shown = main([str(arg) for arg in args]), capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


@pytest.mark.parametrize(("kind", "method"), [("text", "nabla"), ("class", "ddpo"), ("nothing", "draft")])
def test_from_prompts_to_a_tuned_model(here, capsys, kind, method):
    source = []
    if kind == "text":
        embed = ["embed", *model(here, kind), "--prompts", "text.txt", "--out", "cache", *CPU]
        assert "3 prompts with the empty one" in ran(capsys, embed)
        source = ["--model.cache", "cache"]
    ran(capsys, [*train(here, kind, method), *source, "--out", "run"])
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)
    lines = PROMPTS[kind].splitlines()
    page = Path("run/report.html").read_text()
    assert any(line in page for line in lines) and NAMES[kind] in page
    config = json.loads(Path("run/config.json").read_text())["config"]["model"]
    assert (config["name"], config["rank"], config["guidance"]) == (NAMES[kind], 2, 2.0 if kind == "class" else 3.5)
    adapter = load_file("run/adapter/adapter_model.safetensors")
    assert any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)
    assert all("qkv" in name or "encoder_kv" in name or "proj_out" in name for name in adapter)

    last = lines[-1]
    sample = ["sample", "--adapter", "run", "--prompt", last, "--num", "2", "--size", "24", "--frames", "2", *CPU]
    ran(capsys, [*sample, "--rewards", "colorfulness", "--out", "samples"])
    told = [json.loads(line) for line in Path("samples/samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in told] == [last, last] and told[0]["rewards"] != told[1]["rewards"]
    file = Path("samples") / told[0]["files"][0]
    scene = read_ply(file)
    assert scene.means.shape == (1, SIDE**3, 3) and scene.means.abs().max() < 0.7
    assert "64 Gaussians" in ran(
        capsys, ["render", file, "--out", "x.png", "--size", "24", "--views", "3", "--eps2d", "0.3"]
    )
    assert Image.open("x.png").size == (72, 24)

    measure = ["--rewards", "colorfulness", "--features", "none", "--num", "1", "--size", "16", *CPU]
    runs = ["evaluate", "--runs", "end=run", "first=run@0", "--prompts", f"{kind}.txt"]
    ran(capsys, [*runs, *measure, "--out", "e"])
    found = {r["name"]: r["rewards"]["colorfulness"] for r in json.loads(Path("e/table.json").read_text())["results"]}
    assert found["base"] == found["first"] != found["end"]


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(here, capsys):
    """And all layers, convolutions too, are adapted; with what is kept computed again."""
    args = [*train(here, "class", "refl"), "--model.layers", "all", "--model.recompute"]
    ran(capsys, [*args, "--out", "whole"])
    ran(capsys, [*args, "--loop.updates", "1", "--out", "halved"])
    ran(capsys, [*args, "--out", "halved", "--resume"])
    one, two = (load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("whole", "halved"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    trained = " ".join(name for name, value in one.items() if value.abs().max() > 0 and "lora_B" in name)
    assert all(layer in trained for layer in ("qkv", "proj_out", "in_layers.2", "out_layers.3", "emb_layers.1"))


def test_pictures_come_from_the_published_sampler(here, capsys):
    """Unless asked otherwise; the same weights, prompt and seed give another scene by ancestral steps."""
    made = {}
    for name, more in (("published", ["--model.sampler-steps", "5"]), ("ancestral", QUICK)):
        args = ["sample", *model(here, "class", *more), "--prompt", "4", "--size", "16", "--frames", "0", *CPU]
        ran(capsys, [*args, "--out", name])
        made[name] = read_ply(next(Path(name).glob("*.ply")))
    assert not torch.equal(made["published"].means, made["ancestral"].means)


def test_options_of_a_run_that_another_sampler_does_not_read_come_along(here, capsys):
    """A run that looked at itself by one sampler is measured by any other."""
    carried = ["--model.sampler", "multistep2", "--model.sampler-steps", "5", "--model.labels", "published"]
    ran(capsys, [*train(here, "class", "draft", *carried, "--loop.updates", "1"), "--out", "run"])
    measure = ["--rewards", "colorfulness", "--features", "none", "--num", "1", "--size", "16", "--views", "1", *CPU]
    found = []
    for sampler in ("multistep2", "ancestral"):
        runs = ["evaluate", "--runs", "run", "--prompts", "class.txt", "--model.sampler", sampler, "--out", sampler]
        ran(capsys, [*runs, *measure])
        found.append(json.loads(Path(sampler, "table.json").read_text())["results"][0]["rewards"]["colorfulness"])
    assert found[0] != found[1]


def test_a_text_encoder_in_the_place_of_a_cache(here, capsys):
    args = ["sample", *model(here, "text", *QUICK), "--prompt", "a red mug", "--size", "16", "--frames", "0", *CPU]
    ran(capsys, [*args, "--out", "samples"])
    assert len(list(Path("samples").glob("*.ply"))) == 1


def sampled(folders, kind, prompt, *more):
    return ["sample", *model(folders, kind, *more), "--prompt", prompt, "--out", "o", *CPU]


def test_prompts_that_no_model_can_follow_are_refused(here, capsys):
    said = refused(capsys, sampled(here, "nothing", "a red car"))
    assert 'got \'a red car\', its prompts are "unconditional", "unconditional 2" and so on' in said
    assert said.endswith("(the list unconditional, as in --prompts unconditional)")
    listed = [*train(here, "nothing", "draft", "--prompts", "text.txt"), "--out", "r"]
    assert "the model follows none; got 'a" in refused(capsys, listed)
    for prompt in ("5", "-1", "a red mug"):
        said = refused(capsys, sampled(here, "class", prompt))
        assert said.endswith(f"a prompt is a number 0 to 4, or a name of 2, such as 'mug'; got {prompt!r}")
    lost = [*train(here, "class", "draft", "--model.classes", "none.json", "--prompts", "train"), "--out", "r"]
    assert "no file none.json; model.classes takes a JSON file" in refused(capsys, lost)
    watch = ["--watch", "dnc", "--watch.features", "none", "--watch.prompts", "text.txt"]
    assert "knows classes, not texts" in refused(capsys, [*train(here, "class", "draft", *watch), "--out", "r"])
    bare = str(here("nothing", "gaussiancube-v1.0"))
    args = ["sample", "--model", "gaussiancube-v1.0", "--weights", bare, "--prompt", "a red mug", "--out", "o"]
    args += ["--model.voxels", str(SIDE), *CPU]
    assert "the weights have no layers for texts, so the model follows none; got 'a red mug'" in refused(capsys, args)


def test_all_prompts_are_looked_at_before_any_work(here, capsys):
    """Those of classes and texts; one of many, which no picture shows, cannot be followed."""
    names = [f"mug {i}" for i in range(30)]
    Path("text.txt").write_text("\n".join(names))
    Path("classes.json").write_text(json.dumps(dict.fromkeys(names, 1)))
    Path("long.txt").write_text("\n".join([*names[:20], "7", *names[20:]]))
    ran(capsys, ["embed", *model(here, "text"), "--prompts", "text.txt", "--out", "cache", *CPU])
    for kind, more, said in (
        ("class", [], "a prompt is a number 0 to 4, or a name of 30, such as 'mug 0'; got '7'"),
        ("text", ["--model.cache", "cache"], "prompt '7' is not in the cache cache; add it to the file"),
    ):
        own = [*model(here, kind, *QUICK), *more, "--prompts", "long.txt", *CPU]
        assert said in refused(capsys, ["sample", *own, "--batch-size", "1", "--out", "o"])
        assert said in refused(capsys, [*train(here, kind, "draft", *more), "--prompts", "long.txt", "--out", "r"])
        measure = ["--rewards", "colorfulness", "--features", "none", "--num", "1"]
        assert said in refused(capsys, ["evaluate", *own, *measure, "--out", "e"])


def test_without_prompts_it_takes_the_models_own(here, capsys):
    """Classes by name, and many a nothing: each counts as a prompt, so that there are intervals and looks."""
    given = [*METHODS["draft"], *TRAIN, "--loop.updates", "1", "--watch", "dnc", "--watch.features", "none"]
    given += ["--watch.size", "16", "--watch.views", "1", "--watch.num", "2"]
    for kind in ("class", "nothing"):
        ran(capsys, ["train", *model(here, kind, *QUICK), *given, "--out", kind])
        measure = ["--rewards", "dnc", "--features", "none", "--num", "1", "--size", "16", "--views", "1", *CPU]
        ran(capsys, ["evaluate", "--runs", kind, *measure, "--out", f"e{kind}"])
        table = json.loads(Path(f"e{kind}/table.json").read_text())
        assert table["prompts"][1:2] == (["dog"] if kind == "class" else ["unconditional 2"])
        watched = json.loads(Path(f"{kind}/watch/base.json").read_text())["prompts"]
        assert watched == (["mug", "dog"] if kind == "class" else ["unconditional", "unconditional 20"])
    assert len(table["prompts"]) == 20


def test_other_bad_input_is_refused(here, capsys, tmp_path):
    for kind in ("class", "nothing"):
        embed = ["embed", *model(here, kind), "--prompts", f"{kind}.txt", "--out", "cache", *CPU]
        assert "follows no texts, so there is nothing to encode" in refused(capsys, embed)
    Path("classes.json").write_text('{"mug": 5}')
    assert "'mug' is 5; classes of this model are numbers 0 to 4" in refused(capsys, sampled(here, "class", "mug"))
    named = sampled(here, "nothing", "unconditional", "--model.classes", "classes.json")
    assert "model.classes is for models that were trained with classes" in refused(capsys, named)
    said = refused(capsys, sampled(here, "class", "1", "--model.steps", "5000"))
    assert "model.steps: linspace spacing takes at most 999 steps, got 5000" in said
    other = tiny.write_cube(tmp_path / "x", registry.load(MODELS, NAMES["nothing"]), tiny.KINDS["nothing"])
    mean, std = tiny.norms(SIDE)
    args = ["sample", "--model", NAMES["nothing"], "--weights", "x", *SMALL, "--prompt", "unconditional", "--out", "o"]
    for change, words in (
        ((mean + 2.0, std), "mean.pt and std.pt are not those of this data set"),
        ((mean[:2, :2, :2].clone(), std), "x/mean.pt is [2, 2, 2, 14], expected [4, 4, 4, 14]"),
        ((mean[..., :13].clone(), std), "x/mean.pt is [4, 4, 4, 13], expected [4, 4, 4, 14]"),
    ):
        for name, value in zip(("mean", "std"), change, strict=True):
            torch.save(value, other / f"{name}.pt")
        assert words in refused(capsys, [*args, *CPU])
    (other / "std.pt").unlink()
    assert "x lacks std.pt; it takes shapenet_car_ckpt.pt, mean.pt, std.pt" in refused(capsys, [*args, *CPU])


def test_it_says_what_takes_less_memory():
    part = registry.load(MODELS, "gaussiancube")
    parts = {"model": part(), "method": Nabla()}
    assert leaner(("train", None, parts)) == ["--model.recompute", "--method.scenes 1"]
    assert leaner(("train", None, {"model": part(recompute=True)})) == []
    assert leaner(("sample", None, {"model": part()})) == []
