"""Rewards made of a CLIP: the numbers of the originals, gradients, texts, and files that are refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny_clip
import torch
from command_checks import TRAIN, enter, refused
from tiny_clip import PROMPTS, images

from align3d.cli import main
from align3d.pretrained import clip as pretrained
from align3d.pretrained.clip import Clip
from align3d.registry import load
from align3d.rewards import REWARDS, aesthetic, clip_scores, hpsv2, pickscore
from align3d.scenes.cameras import canonical
from align3d.types import Views

NAMES = ["aesthetic", "aesthetic-linear", "clip", "hpsv2", "hpsv2.1", "pickscore"]
ORIGINAL = json.loads((Path(__file__).parent / "data/rewards/clip.json").read_text(encoding="utf-8"))
SHAPES = {"wide": (40, 64), "tall": (300, 250)}


@pytest.fixture(scope="module", autouse=True)
def tiny_sizes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpsv2, "SIZES", tiny_clip.gelu(tiny_clip.SIZES))
        patch.setattr(pickscore.PickScore, "widths", (tiny_clip.WIDTH, tiny_clip.DIM))
        yield
    for cached in (pretrained.sizes_of, pretrained.network, pretrained.tokenizer_of, clip_scores._text_feature):
        cached.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> folder of the published files."""
    root = tmp_path_factory.mktemp("clips")
    plain = tiny_clip.write_clip(root / "clip")
    torch.save(tiny_clip.aesthetic_stack(), plain / aesthetic.STACK)
    torch.save(tiny_clip.aesthetic_linear(), plain / aesthetic.LINEAR)
    hps = tiny_clip.write_hps(root / "hps")
    tiny_clip.write_hps(root / "hps", "HPS_v2_compressed.pt")
    found = dict.fromkeys(NAMES[:3], plain) | dict.fromkeys(NAMES[3:5], hps)
    return found | {"pickscore": tiny_clip.write_clip(root / "pick", act="gelu")}


def reward(folders, name: str, **options):
    return load(REWARDS, name, "reward")(weights=folders[name], **options)


def seen(rgb: torch.Tensor) -> Views:
    return Views(canonical(2, *rgb.shape[-2:]), rgb=rgb)


def recorded(name: str, shape: str) -> torch.Tensor:
    return torch.tensor(ORIGINAL["hpsv2" if name == "hpsv2.1" else name][shape]["scores"]).reshape(2, 3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_original(folders, name, shape):
    score = reward(folders, name)(seen(images(*SHAPES[shape])), PROMPTS)
    expected = recorded(name, shape)
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().mean()))
    assert float(expected.flatten().std()) > 20 * 1e-4 * float(expected.abs().mean())  # else this says little


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["aesthetic", "clip", "hpsv2"])
def test_pixels_are_those_of_the_original(folders, name, shape, monkeypatch):
    got = []
    monkeypatch.setattr(pretrained, "look", lambda net, x: got.append(x) or torch.ones(len(x), tiny_clip.DIM))
    reward(folders, name)(seen(images(*SHAPES[shape])), PROMPTS)
    pixels = torch.cat(got)
    assert pixels.shape == (6, 3, 224, 224)
    expected = torch.tensor(ORIGINAL[name][shape]["pixels"])
    torch.testing.assert_close(pixels[::4, :, 5::31, 7::29].flatten(), expected, rtol=0, atol=1e-3)


def test_antialias_is_a_choice(folders):
    views = seen(images(300, 250))
    for name in ("aesthetic", "hpsv2.1"):
        plain, other = (reward(folders, name, antialias=choice)(views, PROMPTS) for choice in (False, True))
        assert float((plain - other).abs().min()) > 1e-5, name


@pytest.mark.parametrize("name", NAMES)
def test_every_view_has_a_gradient_that_is_its_own(folders, name):
    scorer = reward(folders, name)
    rgb = images(30, 36).requires_grad_()  # all of a width of 36 that is not cut off, 30, has a gradient
    score = scorer(seen(rgb), PROMPTS)
    (gradient,) = torch.autograd.grad((score * torch.arange(1.0, 7).reshape(2, 3)).sum(), rgb)
    inside = gradient[..., 4:-4]
    assert bool(gradient.isfinite().all()) and bool((inside != 0).any(2).all()) and score.dtype == torch.float32
    for b, v in ((0, 1), (1, 2)):
        one = rgb[b : b + 1, v : v + 1].detach().requires_grad_()
        alone = scorer(seen(one), PROMPTS[b : b + 1])
        torch.testing.assert_close(alone[0, 0], score[b, v], rtol=1e-5, atol=1e-6)
        (own,) = torch.autograd.grad(alone.sum(), one)
        close = {"rtol": 1e-3, "atol": 1e-4 * float(gradient.abs().max())}
        torch.testing.assert_close(own[0, 0] * (1 + 3 * b + v), gradient[b, v], **close)
    along = gradient / gradient.norm()
    ends = [
        (scorer(seen(rgb.detach() + step * along), PROMPTS) * torch.arange(1.0, 7).reshape(2, 3))
        for step in (0.05, -0.05)
    ]
    slope = float((ends[0] - ends[1]).sum()) / 0.1
    assert slope == pytest.approx(float(gradient.norm()), rel=0.02)


def test_white_keeps_its_gradient(folders):
    """Rounding may lift white over 1 by a little, which is not cut off as a real overshoot is."""
    rgb = torch.ones(1, 3, 3, 300, 250).requires_grad_()
    reward(folders, "clip")(seen(rgb), PROMPTS[:1]).sum().backward()
    assert bool((rgb.grad[..., 30:-30, :] != 0).any(2).all())


def test_float32_whatever_autocast_says(folders):
    views = seen(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = reward(folders, "hpsv2")(views, PROMPTS)
    torch.testing.assert_close(score, reward(folders, "hpsv2")(views, PROMPTS), rtol=0, atol=0)


def test_folding_the_layers_is_exact(folders):
    state = tiny_clip.aesthetic_stack()
    layers = [torch.nn.Linear(*state[f"{name}.weight"].shape[::-1]) for name in aesthetic.LAYERS]
    x = torch.nn.functional.normalize(tiny_clip.numbers("features", 9, tiny_clip.DIM), dim=-1)
    y = x.double()
    for name, layer in zip(aesthetic.LAYERS, layers, strict=True):
        layer.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
        y = layer.double()(y)
    weight, bias = aesthetic.stack(folders["aesthetic"] / aesthetic.STACK, tiny_clip.DIM)
    torch.testing.assert_close(x @ weight + bias, y[:, 0].float(), rtol=1e-6, atol=1e-6)


def test_prompts_decide_only_where_they_are_read(folders):
    views = seen(images()[:1].expand(2, -1, -1, -1, -1))
    for name in NAMES:
        score = reward(folders, name)(views, PROMPTS)
        same = bool((score[0] - score[1]).abs().max() < 1e-6)
        assert same == name.startswith("aesthetic"), name


def test_texts_are_encoded_once_and_alike(folders, monkeypatch):
    scorer, views, calls = reward(folders, "hpsv2.1"), seen(images()), []
    first = scorer(views, PROMPTS)
    original = pretrained.read
    monkeypatch.setattr(pretrained, "read", lambda net, ids: calls.append(ids) or original(net, ids))
    assert torch.equal(scorer(views, PROMPTS), first) and not calls
    clip_scores._text_feature.cache_clear()
    assert torch.equal(scorer(views, PROMPTS), first) and len(calls) == 2
    assert torch.equal(scorer(views, [f" {PROMPTS[0]}  ", "two dogs on a&#32;chair"]), first)
    assert hpsv2.cleaned(["\u201cit\u2019s\u201d &amp;amp; more "]) == ['"it\'s" & more']


def test_a_prompt_that_is_cut_is_told_once(folders):
    clip_scores._told.cache_clear()
    long = ["a red mug " * 20, "b" * 300]
    scorer = reward(folders, "clip")
    with pytest.warns(RuntimeWarning, match=r"reads 75 tokens of a prompt; the rest of 'a red mug .*and 1 more"):
        scorer.check([*PROMPTS, *long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.check(long)
        score = scorer(seen(images()), long)
    assert torch.equal(score, scorer(seen(images()), [long[0][:-1] + " more of it", long[1]]))


def test_a_converted_file_is_read_in_the_place_of_the_published_one(folders, tmp_path):
    folder = Path(shutil.copytree(folders["hpsv2.1"], tmp_path / "hps"))
    views, kind = seen(images()), load(REWARDS, "hpsv2.1")
    expected = kind(folder)(views, PROMPTS)
    assert kind.convert(folder) == folder / "HPS_v2.1_compressed.safetensors" and kind.convert(folder) is None
    for file in ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"):
        (folder / file).unlink()
    pretrained.sizes_of.cache_clear()
    pretrained.network.cache_clear()
    clip_scores._text_feature.cache_clear()
    kind(folder).check(PROMPTS)
    assert torch.equal(kind(folder)(views, PROMPTS), expected)
    with pytest.raises(FileNotFoundError, match=r"HPS_v2_compressed.pt is missing; `align3d download hpsv2 --out"):
        load(REWARDS, "hpsv2")(folder).check(PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_told_with_their_place(folders, name, tmp_path):
    kind = load(REWARDS, name)
    with pytest.raises(FileNotFoundError, match=rf"reward {name} needs .*, or {name}\(weights=FOLDER\); "):
        kind().check(PROMPTS)
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing; .*by hand https://huggingface.co/"):
        kind(tmp_path / "nowhere")(seen(images()), PROMPTS)
    needed = {"aesthetic": [aesthetic.STACK], "aesthetic-linear": [aesthetic.LINEAR], "hpsv2": ["HPS_v2_compressed.pt"]}
    needed |= {"hpsv2.1": ["HPS_v2.1_compressed.pt", "merges.txt"]}
    for file in needed.get(name, ["config.json", "model.safetensors", "vocab.json"]):
        folder = Path(shutil.copytree(folders[name], tmp_path / file))
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match=f"{re.escape(file)} is missing") as error:
            kind(folder).check(PROMPTS)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (aesthetic.STACK, lambda s: s | {"layers.7.bias": torch.zeros(2)}, r"layers.7.bias is \(2,\), expected \(1,\)"),
        (aesthetic.STACK, lambda s: s | {"layers.8.bias": torch.zeros(2)}, "layers.8.bias is .*, expected none"),
        (aesthetic.STACK, lambda s: {"weight": torch.zeros(1, 768)}, "and 10 more; copy both again"),
        (aesthetic.STACK, lambda s: s | {"layers.7.bias": torch.tensor([torch.nan])}, "has NaN"),
        (aesthetic.STACK, lambda s: list(s), "has no tensors by name"),
        (aesthetic.STACK, lambda s: s | {"epoch": 3}, "has no tensors by name"),
        (aesthetic.STACK, lambda s: Path("x"), "holds more than tensors, which could run code"),
    ],
)
def test_predictors_of_something_else(folders, file, change, words, tmp_path):
    folder = Path(shutil.copytree(folders["aesthetic"], tmp_path / "clip"))
    torch.save(change(tiny_clip.aesthetic_stack()), folder / file)
    with pytest.raises(ValueError, match=words) as error:
        aesthetic.Aesthetic(folder).check(PROMPTS)
    assert "\n" not in str(error.value) and file in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "visual.proj"}, "1 missing, such as visual_projection.weight"),
        (lambda s: s | {"visual.extra": torch.zeros(1)}, "1 unknown, such as visual.extra"),
        (lambda s: s | {"text_projection": torch.zeros(4, 8)}, r"text_projection.weight \[8, 4\]"),
        (lambda s: s | {"transformer.resblocks.0.attn.in_proj_bias": torch.zeros(5)}, "3 missing, .* 1 unknown"),
        (lambda s: s | {"visual.ln_pre.bias": torch.full((32,), torch.inf)}, "has NaN or infinity"),
    ],
)
def test_weights_of_another_network(change, words, tmp_path):
    folder = tiny_clip.write_hps(tmp_path)
    torch.save({"state_dict": change(tiny_clip.openclip_state())}, folder / "HPS_v2.1_compressed.pt")
    scorer = load(REWARDS, "hpsv2.1")(folder)
    with pytest.raises(ValueError, match=words) as error:
        scorer.check(PROMPTS)
        scorer(seen(images()), PROMPTS)
    assert "\n" not in str(error.value) and "HPS_v2.1_compressed.pt" in str(error.value)


def test_colours_of_another_range_are_refused(folders):
    with pytest.raises(ValueError, match=r"reward clip needs colours from 0 to 1, got -0.7 to 0.7"):
        reward(folders, "clip")(seen((images() - 0.5) * 2), PROMPTS)
    with pytest.raises(ValueError, match="reward hpsv2 needs views with rgb"):
        reward(folders, "hpsv2")(Views(canonical(2, 8, 9)), PROMPTS)


def test_a_clip_whose_pictures_do_not_fit_it(folders, tmp_path):
    folder = Path(shutil.copytree(folders["clip"], tmp_path / "clip"))
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny_clip.STEPS | {"crop_size": 112}))
    with pytest.raises(ValueError, match=r"makes pictures of \(112, 112\) pixels, the network takes 224 x 224"):
        load(REWARDS, "clip")(folder).check(PROMPTS)
    (folder / "preprocessor_config.json").unlink()
    views = seen(images())
    assert torch.equal(load(REWARDS, "clip")(folder)(views, PROMPTS), reward(folders, "clip")(views, PROMPTS))


def test_a_file_that_names_no_crop_means_none(folders, tmp_path):
    """Those of SigLIP say height and width, and do not know of a crop; CLIP's silent ones mean 224."""
    steps = {key: value for key, value in tiny_clip.STEPS.items() if key not in ("do_center_crop", "crop_size")}
    for size, crop in (({"height": 384, "width": 384}, None), ({"shortest_edge": 384}, (224, 224)), (384, (224, 224))):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(steps | {"size": size}))
        assert clip_scores.preprocessing(tmp_path).crop == crop
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(steps | {"size": {"height": 384, "width": 384}, "crop_size": 200}))
    assert clip_scores.preprocessing(tmp_path).crop == (200, 200)


@pytest.mark.parametrize("widths", [(1280, tiny_clip.DIM), (tiny_clip.WIDTH, 1024)])
def test_another_clip_is_not_pickscore(folders, widths, monkeypatch):
    assert pickscore.PickScore(folders["pickscore"]).check(PROMPTS) is None
    monkeypatch.setattr(pickscore.PickScore, "widths", widths)
    scorer = pickscore.PickScore(folders["pickscore"])
    for call in (lambda: scorer.check(PROMPTS), lambda: scorer(seen(images()), PROMPTS)):
        with pytest.raises(ValueError, match=rf"is not PickScore: .* 32 and 768 numbers, expected {widths[0]} and"):
            call()


@pytest.mark.parametrize("name", NAMES)
def test_a_first_look_in_inference_mode_does_no_harm(folders, name):
    for cached in (pretrained.network, clip_scores._text_feature, aesthetic.stack, aesthetic.linear):
        cached.cache_clear()
    with torch.inference_mode():
        reward(folders, name)(seen(images()), PROMPTS)
    rgb = images().requires_grad_()
    reward(folders, name)(seen(rgb), PROMPTS).sum().backward()
    assert (rgb.grad.flatten(2).norm(dim=2) > 0).all()


def test_the_text_half_is_not_read_for_pictures_alone(folders):
    net = pretrained.network(Clip(folders["clip"]), "image", torch.device("cpu"))
    assert not hasattr(net, "text_model") and not any(p.requires_grad for p in net.parameters())
    assert not hasattr(pretrained.network(Clip(folders["clip"]), "text", torch.device("cpu")), "vision_model")


def test_training_without_weights_is_refused_at_once(tmp_path, monkeypatch, capsys):
    enter(tmp_path, monkeypatch)
    said = refused(capsys, [*TRAIN, "--reward", "hpsv2.1"])
    assert "reward hpsv2.1 needs the folder of its published files, --reward.weights FOLDER" in said
    said = refused(capsys, [*TRAIN, "--reward", "aesthetic", "--reward.weights", "nowhere"])
    assert "nowhere is missing; `align3d download aesthetic --out nowhere --yes` fetches them" in said


def test_flags_are_shown_without_torch():
    """In a process of its own: in this one, annotations see more than users have."""
    words = " ".join(f"'{name}'," for name in NAMES)
    program = f"from align3d.cli import main; [main(['train', '--reward', name, '--help']) for name in [{words}]]"
    program += "; import sys; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--reward.weights") == len(NAMES) and done.stdout.splitlines()[-1] == "False"


def test_training_runs(folders, tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    arguments = ["--reward", "hpsv2.1", "--reward.weights", str(folders["hpsv2.1"])]
    arguments += ["--loop.updates", "1", "--loop.batch-size", "2"]
    assert main([*TRAIN, *arguments]) == 0
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
