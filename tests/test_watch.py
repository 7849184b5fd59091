"""Watching a run: what a look sees, what it leaves, when it ends the run; and that the training never notices."""

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fakes import FakeModel, steady
from safetensors.torch import load_file
from user_parts import Picky, ToyModel, redness

from align3d import samples
from align3d.commands.earlier import model_of
from align3d.commands.train import Train, run
from align3d.conditions import parse
from align3d.config import of_python
from align3d.evaluate import change, evaluate, evaluation_cameras
from align3d.intervals import jackknife_error
from align3d.log import plain, read_metrics
from align3d.loop import Loop
from align3d.methods.nabla import Nabla
from align3d.metrics import diversity, frechet_distance, leave_out
from align3d.models.lora_files import adapter_folder
from align3d.rewards.score import as_reward, known
from align3d.scenes.cameras import CameraSampling
from align3d.watch import Watch, Watching, best

PROMPTS = ["a red cube", "a longer prompt of a blue ball", "a cone"]
LOOP = Loop(updates=4, batch_size=2, checkpoint_every=2, learning_rate=0.02, warmup=0)
WATCH = Watch(
    rewards=("user_parts:Picky", "test_watch:greenness"), every=2, num=3, seeds=2, views=3, size=16, features="corners"
)


def greenness(views, prompts):
    """The opposite of redness; of the whole object."""
    return -redness(views, prompts).mean(1, keepdim=True)


@dataclass(frozen=True)
class Corners:
    """The colours of two pixels."""

    dims: ClassVar[int] = 6

    def check(self):
        """Nothing to check."""

    def __call__(self, images):
        return torch.cat([images[:, :, 5, 7], images[:, :, 8, 9]], 1)


@dataclass(frozen=True)
class Toy:
    """A small cloud; its adapter starts at 0."""

    def load(self, device="cpu"):
        model = ToyModel()
        model.steps = 3
        return model


def marked(self, done, model):
    """Leaves a file where the pictures of a run would be drawn."""
    (self.out / f"pictures-{done}").touch()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a run in tmp_path/NAME; gives its folder."""
    monkeypatch.setattr(samples.Sampling, "__call__", marked)
    monkeypatch.setattr("align3d.commands.train.report", lambda out: None)
    monkeypatch.setitem(__import__("align3d.features").features.FEATURES, "corners", "test_watch:Corners")
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))

    def train(name="run", watch=WATCH, loop=LOOP, reward=redness, **options) -> Path:
        asked = Train(prompts=file, out=tmp_path / name, device="cpu", **options)
        parts = {"model": Toy(), "method": Nabla(beta=3.0, transitions=2), "reward": reward}
        names = {"model": "toy", "method": "nabla", "reward": "redness"}
        watch = replace(watch, prompts=file) if watch.on else watch
        run(asked, names=names, loop=loop, cameras=CameraSampling(size=16), watch=watch, **parts)
        return asked.out

    return train


def rows(out: Path) -> list[dict]:
    return read_metrics(out / "metrics.jsonl")


def seen(out: Path, column: str) -> dict[int, float]:
    """A column of the looks."""
    return {row["step"]: row[f"watch_{column}"] for row in rows(out) if f"watch_{column}" in row}


def adapter(folder: Path) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def result(out: Path) -> dict:
    """All that a run leaves, less what depends on the clock."""
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    skip = ("metrics.jsonl", "config.json", "report.html")
    return {name: path.read_bytes() for name, path in files.items() if name not in skip} | {"rows": steady(rows(out))}


def test_a_look_sees_what_an_evaluation_sees(start):
    out = start()
    assert list(seen(out, "redness")) == [2, 4]
    model, rewards = ToyModel(), {"redness": redness, "user_parts:Picky": Picky(), "test_watch:greenness": greenness}
    model.steps = 3
    cameras = evaluation_cameras(16, [60.0, 180.0, 300.0])

    def measured(seeds):
        return evaluate(model, PROMPTS, seeds, rewards, cameras, features=Corners())

    base, reference = measured((0, 1)), measured((2, 3))
    model.adapter.load_state_dict(load_file(out / "adapter/adapter_model.safetensors"))
    tuned = measured((0, 1))
    for name, value in tuned.mean().items():
        assert seen(out, name)[4] == pytest.approx(value, abs=1e-6)
    i = base.rewards.index("redness")
    error = change("redness", base.scores[..., i].mean(1), tuned.scores[..., i].mean(1)).error
    assert seen(out, "redness_error")[4] == pytest.approx(error, rel=1e-3) and error > 0
    other = reference.features
    fid = frechet_distance(tuned.features.flatten(0, 2), other.flatten(0, 2))
    assert seen(out, "fid")[4] == pytest.approx(fid, rel=1e-3)
    left = [leave_out(x.features.flatten(1, 2), other.flatten(1, 2)) for x in (tuned, base)]
    error = jackknife_error([a - b for a, b in zip(*left, strict=True)])
    assert seen(out, "fid_error")[4] == pytest.approx(error, rel=1e-3)
    assert seen(out, "diversity")[4] == pytest.approx(float(diversity(tuned.features).mean()), rel=1e-3)

    about = json.loads((out / "watch/base.json").read_text())
    floor = frechet_distance(base.features.flatten(0, 2), other.flatten(0, 2))
    assert about["numbers"]["fid"] == pytest.approx(floor, rel=1e-3) and about["images"] == 18
    assert about["numbers"]["redness"] == pytest.approx(base.mean()["redness"], abs=1e-6)
    assert about["numbers"]["diversity"] == pytest.approx(float(diversity(base.features).mean()), rel=1e-3)
    assert about["numbers"]["redness_error"] == 0 and about["trained"] == "redness"
    looks = list(seen(out, "redness").values())
    assert all(abs(value - about["numbers"]["redness"]) > 0.01 for value in looks) and looks[0] != looks[1]
    assert not list(out.rglob(".tmp-*"))


def test_watching_changes_no_weight_and_no_row(start):
    plain, watched = start("plain", Watch()), start("watched")
    assert not (plain / "watch").exists() and "watch" not in json.loads((plain / "config.json").read_text())["config"]
    for folder in ("adapter", "checkpoints/step-000004"):
        for path in (plain / folder).iterdir():
            assert path.read_bytes() == (watched / folder / path.name).read_bytes()
    less = [{k: v for k, v in row.items() if not k.startswith("watch_")} for row in rows(watched)]
    assert steady(less) == steady(rows(plain))


def test_a_run_that_is_interrupted_and_resumed_leaves_the_same_files(start):
    want = result(start("whole"))

    def pressed(views, prompts):
        if views.rgb.requires_grad and pressed.left:
            pressed.left -= 1
            signal.raise_signal(signal.SIGINT)
        return redness(views, prompts)

    for done in (1, 2):
        pressed.left = 1
        with pytest.raises(KeyboardInterrupt, match=f"stopped after update {done} of 4"):
            start("parts", reward=pressed, resume=done > 1)
    out = start("parts", resume=True)
    assert result(out) == want
    assert "best/best.json" in want and "watch/base/samples.safetensors" in want


def test_the_best_adapter_stays(start, capsys):
    out = start()
    assert best(out)["step"] == 4 and best(out)["value"] == seen(out, "redness")[4]
    assert adapter(out / "best") == adapter(out / "adapter")
    assert f"best adapter: {out / 'best'}, after update 4: redness" in capsys.readouterr().err
    assert adapter_folder(out / "best") == out / "best" and model_of(out / "best")["name"] == "toy"

    worst = start("green", replace(WATCH, best="test_watch:greenness"), replace(LOOP, keep=1))
    looks = seen(worst, "test_watch:greenness")
    assert looks[2] > looks[4], "what is trained is the opposite"
    assert best(worst)["step"] == 2 and adapter(worst / "best") != adapter(worst / "adapter")


def test_a_condition_ends_the_run(start, capsys):
    free = start("free")
    limit = seen(free, "redness")[2] + 1e-6
    loop = replace(LOOP, updates=12, sample_every=0)
    stop = replace(WATCH, stop_when=f"fid > 1e9 or redness > {limit}")
    out = start("run", stop, loop)
    told = capsys.readouterr().err
    assert f"ended after update 4 of 12: redness > {limit!r}, at {seen(out, 'redness')[4]:.4g}" in told
    assert f"best adapter: {out / 'best'}, after update 2" in told, "not that of the look that ended it"
    assert len(rows(out)) == 4 and (out / "checkpoints/step-000004").is_dir()
    assert sorted(path.name for path in out.glob("pictures-*")) == ["pictures-0", "pictures-4"]
    before = result(out)

    start("run", stop, loop, resume=True)
    assert "ended after update 4 of 12" in capsys.readouterr().err and result(out) == before
    start("run", replace(stop, stop_when=""), replace(loop, updates=6), resume=True)
    assert len(rows(out)) == 6 and "ended" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["base - 3 sd", "base - 2.5 se", "base - 0.03", "base"])
def test_a_condition_relative_to_the_base_model_ends_the_run(start, capsys, text):
    name, loop = "test_watch:greenness", replace(LOOP, updates=12, checkpoint_every=1)
    stop = replace(WATCH, stop_when=f"watch.{name}<{text.replace(' ', '')}")
    out = start(watch=stop, loop=loop)
    about, (before, ended) = json.loads((out / "watch/base.json").read_text()), seen(out, name).values()
    units = {"sd": about["spread"][name], "se": seen(out, f"{name}_error")[4]}
    share = -float(text.split()[2]) * units.get(text[-2:], 1.0) if text != "base" else 0.0
    limit = about["numbers"][name] + share
    assert ended < limit <= before, "it was above the limit at the first look"
    said = f"align3d: ended after update 4 of 12: {name} < {text} ({limit:.4g}), at {ended:.4g}"
    assert said in capsys.readouterr().err.splitlines()
    assert best(out)["step"] == 2 and adapter(out / "best") == adapter(
        start("two", loop=replace(LOOP, updates=2)) / "adapter"
    )
    assert adapter(out / "best") != adapter(out / "adapter")

    want = result(out)
    (out / "watch/base.json").unlink()
    capsys.readouterr()
    start(watch=stop, loop=loop, resume=True)
    assert said in capsys.readouterr().err.splitlines() and result(out) == want
    start(watch=replace(stop, stop_when=f"{name} < base - 1e6sd"), loop=replace(loop, updates=5), resume=True)
    assert len(rows(out)) == 5


def test_a_look_without_the_error_that_a_limit_is_in_is_an_error(start, monkeypatch):
    numbers = Watching.numbers
    monkeypatch.setattr(Watching, "numbers", lambda *a: {k: v for k, v in numbers(*a).items() if "fid_" not in k})
    with pytest.raises(ValueError, match=r"'fid > base [+] 1e[+]06 se', but fid has no se at this look"):
        start(watch=replace(WATCH, stop_when="fid > base + 1e6 se"))


def test_a_condition_may_only_keep_looks_out_of_best(start, capsys):
    free = start("free")
    limit = seen(free, "redness")[2] + 1e-6
    out = start("run", replace(WATCH, stop_when=f"redness > {limit}", go_on=True))
    assert adapter(out / "adapter") == adapter(free / "adapter") and len(rows(out)) == 4
    assert (best(free)["step"], best(out)["step"]) == (4, 2) and "ended" not in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"watch\.go_on needs a watch\.stop_when"):
        Watch(rewards=("dnc",), go_on=True)


def test_options_of_watching_without_anything_to_watch_are_refused(start, tmp_path):
    with pytest.raises(ValueError, match="nothing to watch; give --watch REWARD"):
        start(watch=Watch(every=2))
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_says_what_it_watched(tmp_path):
    watching = Watching(tmp_path, ("a", "b"), (0, 1), {"redness": as_reward(redness)}, None, evaluation_cameras(8))
    config = of_python(FakeModel(), Nabla(), lambda *_: 0, LOOP, watching)["watch"]
    assert config["rewards"] == {"redness": {"name": "user_parts:redness"}} and config["seeds"] == [0, 1]
    other = replace(
        watching,
        cameras=evaluation_cameras(8, [0.0]),
        conditions=parse("redness < 1e-9 or diversity > base + 0.1234567 se"),
    )
    assert other.recorded()["cameras"] != config["cameras"]
    assert parse(other.recorded()["stop_when"]) == other.conditions
    json.dumps(plain(config))


def test_a_run_whose_first_look_ends_it_has_no_best(start, capsys):
    out = start(watch=replace(WATCH, stop_when="diversity >= 0"))
    assert len(rows(out)) == 2 and not (out / "best").exists()
    assert "no best adapter" in capsys.readouterr().err


def test_without_a_network_there_is_no_fid_and_diversity_is_of_pixels(start):
    out = start(watch=replace(WATCH, features="none", every=0))
    assert list(seen(out, "diversity")) == [4] and not seen(out, "fid")
    model = ToyModel()
    model.steps = 3
    model.adapter.load_state_dict(load_file(out / "adapter/adapter_model.safetensors"))
    tuned = evaluate(model, PROMPTS, (0, 1), {"redness": redness}, evaluation_cameras(16, [60.0, 180.0, 300.0]))
    assert seen(out, "diversity")[4] == pytest.approx(float(tuned.diversity().mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -1}, "watch.every must be 0"),
        ({"seeds": 1}, "watch.seeds must be 2"),
        ({"num": 1}, "watch.num must be 2"),
        ({"views": 0}, "watch.views must be 1"),
        ({"num": 4000}, "at most 4096, got 4000 x 2"),
        ({"views": 64, "size": 512}, "64 views of 512 pixels takes too much memory"),
        ({"num": 1000, "size": 512}, "1000 x 2 samples .* too much memory"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Watch(**options)


def test_what_cannot_be_watched_is_refused_before_anything_is_written(start, tmp_path):
    for options, message in [
        ({"stop_when": "dnc < 0.8"}, "has 'dnc', known here: redness, user_parts:Picky, .*, diversity, fid;"),
        (
            {"stop_when": "fid > 1", "features": "none"},
            "has 'fid', known here: .*diversity; a FID needs --watch.features",
        ),
        ({"stop_when": "fid > base + 2sd"}, "'fid > base [+] 2 sd', but fid is one number .* give se, .*or base . NUM"),
        ({"stop_when": "diversity < base - sd"}, "stop-when must be NAME < LIMIT"),
        ({"stop_when": "watch.diversity < base - 1 SD"}, "'diversity < base - 1 sd', but diversity is one"),
        ({"best": "fid"}, "watch.best must be a reward .*untouched base"),
        ({"best": "dnc"}, "watch.best must be a reward"),
        ({"rewards": ("nothing",)}, "unknown reward 'nothing'"),
        ({"rewards": ("jpeg-compress", "jpeg-compress")}, "'jpeg-compress' is asked for twice"),
        ({"features": "clip"}, r"features clip needs folder: clip\(folder="),
        ({"features": "nothing"}, "unknown features 'nothing'"),
        ({"features": "efficientnet"}, "needs 320 images or more .*3 prompts x 2 seeds x 3 views are 18: raise"),
    ]:
        with pytest.raises(ValueError, match=message):
            start(watch=replace(WATCH, **options))
    assert not (tmp_path / "run").exists()


def test_prompts_that_a_reward_cannot_score_are_left_out():
    prompts = ["a unicorn", "a cube", "a red unicorn", "a cone"]
    rewards = {"redness": as_reward(redness), "picky": Picky()}
    assert known(prompts, rewards) == ["a cube", "a cone"]
    with pytest.raises(ValueError, match=r"1 of 2 are left; picky refuses 1 \(reward picky has never seen"):
        known(prompts[:2], rewards)


def test_a_resumed_run_does_not_take_other_samples_for_its_own(start, tmp_path):
    out = start()
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS[:2], "a torus"]))
    with pytest.raises(ValueError, match="another configuration"):
        start(resume=True)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with pytest.raises(ValueError, match=r"watch\.every was 2, now 1"):
        start(watch=replace(WATCH, every=1), resume=True)
    (out / "best/best.json").write_text('{"step": "x"}')
    with pytest.raises(ValueError, match=r"best\.json: damaged"):
        best(out)


def test_a_watching_needs_prompts_and_seeds(tmp_path):
    rewards = {"redness": as_reward(redness)}
    with pytest.raises(ValueError, match="two prompts or more and two seeds or more, got 1 and 2"):
        Watching(tmp_path, ("a",), (0, 1), rewards, None, evaluation_cameras(8))
