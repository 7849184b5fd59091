"""ImageReward: its tokens, pictures, scores and gradient against the original code; files; bad input."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_blip
import torch
from safetensors.torch import load_file

from align3d.pretrained.blip import Sizes
from align3d.rewards import imagereward
from align3d.rewards.clip_scores import Preprocessing
from align3d.rewards.imagereward import TOKENS, ImageReward, tokens
from align3d.scenes.cameras import canonical
from align3d.types import Views

B, V, H, W = 2, 3, 40, 56
PROMPTS = ["a red mug", "the dog on a chair with the blues"]
RECORDED = Path(__file__).parent / "data" / "rewards" / "imagereward.json"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The sizes of the tiny network in the place of the published ones."""
    monkeypatch.setattr(imagereward, "sizes", lambda: tiny_blip.SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip.write(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def numbers():
    return json.loads(RECORDED.read_text())


def views(rgb):
    """Pictures (B, V, 3, H, W) with cameras, which are not looked at."""
    return Views(canonical(len(rgb), *rgb.shape[-2:]), rgb=rgb)


def some():
    return tiny_blip.pictures(B * V, H, W).unflatten(0, (B, V))


# The original code


@pytest.mark.filterwarnings("ignore:imagereward reads:RuntimeWarning")
def test_tokens_are_those_of_the_original(folder, numbers):
    """Capitals, accents, Chinese, unknown words, pieces of words, marks, BLIP's own words, and a prompt that is cut."""
    ids, keep = tokens(folder, tiny_blip.PROMPTS)
    assert ids.tolist() == numbers["ids"] and keep.int().tolist() == numbers["keep"]
    assert keep[1].all() and keep[2].sum() == 2
    alone, _ = tokens(folder, tiny_blip.PROMPTS[:1])
    assert torch.equal(alone, ids[:1])


@pytest.mark.filterwarnings("ignore:imagereward reads:RuntimeWarning")
def test_scores_and_gradient_are_those_of_the_original(folder, numbers):
    rgb = (tiny_blip.pixels().float() / 255)[:, None].requires_grad_()
    scores = ImageReward(folder)(views(rgb), tiny_blip.PROMPTS)
    torch.testing.assert_close(scores[:, 0], torch.tensor(numbers["score_gard"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[:, 0], torch.tensor(numbers["score"]), rtol=0, atol=6e-3)  # pictures of 8 bits
    scores.sum().backward()
    got, most = rgb.grad[:, 0], torch.tensor(numbers["largest"])
    want = torch.tensor(numbers["gradient"]).reshape(got[:, :, ::9, ::11].shape)
    assert ((got[:, :, ::9, ::11] - want).abs().amax((1, 2, 3)) < 1e-4 * most).all()
    torch.testing.assert_close(got.abs().flatten(1).amax(1), most, rtol=1e-4, atol=0)


def test_pictures_are_those_of_the_original(numbers):
    """Up to the rounding to 8 bits, which is 2 of 255 levels at most: rows and columns are resized in turn."""
    side = tiny_blip.SIZES.side
    got = Preprocessing(side, crop=(side, side))(tiny_blip.pixels().float() / 255)[:, :, ::7, ::5]
    want = torch.tensor(numbers["pixels"]).reshape(got.shape)
    assert (got - want).abs().max() < 1.01 / 255 / 0.26


def test_published_sizes():
    """A ViT-L/16, and BERT-base with cross-attention to it."""
    from align3d.pretrained.blip import ImageEncoder, TextEncoder

    with torch.device("meta"):
        encoders = ImageEncoder(Sizes()), TextEncoder(Sizes())
    found = {}
    for name, part in zip(("visual_encoder", "text_encoder"), encoders, strict=True):
        found |= {f"blip.{name}.{key}": tuple(value.shape) for key, value in part.state_dict().items()}
    want = {key: shape for key, shape in tiny_blip.shapes(Sizes()).items() if key.startswith("blip.")}
    assert found == {key: shape for key, shape in want.items() if not key.startswith(imagereward.UNUSED)}
    assert [round(sum(p.numel() for p in part.parameters()) / 1e6) for part in encoders] == [303, 142]


# The reward


def test_head_is_one_affine_map(folder):
    net, (slope, offset) = imagereward.network(folder, torch.device("cpu"))
    state, x = tiny_blip.state(), tiny_blip.noise(3 * 24, 5).reshape(3, 24)
    y = x
    for name in imagereward.LAYERS:
        y = y @ state[f"mlp.layers.{name}.weight"].double().T + state[f"mlp.layers.{name}.bias"].double()
    torch.testing.assert_close(
        x.float() @ slope + offset, ((y[:, 0] - 0.16717) / 1.03334).float(), rtol=1e-4, atol=1e-4
    )
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in net.parameters()) and not net.training


def test_rows_are_independent_and_all_have_a_gradient(folder):
    rgb = some().requires_grad_()
    reward = ImageReward(folder)
    with torch.autocast("cpu", torch.bfloat16):
        scores = reward(views(rgb), PROMPTS)
    assert scores.shape == (B, V) and scores.dtype == torch.float32
    scores.sum().backward()
    assert rgb.grad.isfinite().all() and (rgb.grad.flatten(2).norm(dim=2) > 1e-4).all()
    alone = some()[1:].requires_grad_()
    score = reward(views(alone), PROMPTS[1:])
    torch.testing.assert_close(score, scores[1:], rtol=1e-5, atol=1e-5)
    score.sum().backward()
    torch.testing.assert_close(alone.grad, rgb.grad[1:], rtol=0, atol=1e-6)
    other = reward(views(some()), PROMPTS[::-1])
    assert ((other - scores).abs() > 1e-4).all()  # the prompt is read


def test_a_first_look_in_inference_mode_does_no_harm(folder):
    imagereward.network.cache_clear()
    with torch.inference_mode():
        scores = ImageReward(folder)(views(some()), PROMPTS)
    rgb = some().requires_grad_()
    again = ImageReward(folder)(views(rgb), PROMPTS)
    again.sum().backward()
    torch.testing.assert_close(again.detach(), scores.clone(), rtol=1e-5, atol=1e-5)
    assert (rgb.grad.flatten(2).norm(dim=2) > 0).all()


def test_every_pixel_within_the_crop_has_a_gradient(folder):
    rgb = some()[:, :, :, :, :40].clone().requires_grad_()
    ImageReward(folder)(views(rgb), PROMPTS).sum().backward()
    assert (rgb.grad != 0).float().mean() > 0.99


def test_gradient_is_that_of_finite_differences(folder):
    net, (slope, _) = imagereward.network(folder, torch.device("cpu"))
    ids, keep = tokens(folder, PROMPTS[:1])
    net = net.double()
    try:
        image = tiny_blip.noise(3 * 32 * 32, 3).reshape(1, 3, 32, 32).requires_grad_()

        def score(x):
            return net.text_encoder(ids, keep, net.visual_encoder(x))[:, 0] @ slope.double()

        (found,) = torch.autograd.grad(score(image).sum(), image)
        way = tiny_blip.noise(3 * 32 * 32, 4).reshape(1, 3, 32, 32)
        with torch.no_grad():
            change = float(score(image + 1e-5 * way) - score(image - 1e-5 * way)) / 2e-5
        assert change == pytest.approx(float((found * way).sum()), rel=1e-6)
    finally:
        net.float()


def test_a_cut_prompt_is_warned_of_once(tmp_path):
    folder = tiny_blip.write(tmp_path)
    with pytest.warns(
        RuntimeWarning, match="imagereward reads 33 tokens of a prompt; the rest of 'the unaff.* is lost"
    ):
        ImageReward(folder).check(tiny_blip.PROMPTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageReward(folder).check(tiny_blip.PROMPTS)
    fits = " ".join(["very"] * (TOKENS - 2))
    assert tokens(folder, [fits, f"{fits} very"])[0].tolist()[0] == tokens(folder, [f"{fits} very"])[0].tolist()[0]


# Files and bad input


def test_converted_file_has_the_same_scores(tmp_path):
    folder = tiny_blip.write(tmp_path / "x")
    before = ImageReward(folder)(views(some()), PROMPTS)
    made = ImageReward.convert(folder)
    assert made == folder / "ImageReward.safetensors" and ImageReward.convert(folder) is None
    assert not any(key.startswith(imagereward.UNUSED) for key in load_file(made))
    (folder / "ImageReward.pt").unlink()
    folder.rename(tmp_path / "y")
    assert torch.equal(ImageReward(tmp_path / "y")(views(some()), PROMPTS), before)


def test_missing_files_say_where_they_are(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"--reward.weights FOLDER, .*https://huggingface.co/THUDM/ImageReward: Im"
    ):
        ImageReward().check(PROMPTS)
    folder = tiny_blip.write(tmp_path)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab.txt is missing; .*co/google-bert/bert-base-uncased: vocab.txt"):
        ImageReward(folder).check(PROMPTS)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("blip.visual_encoder.norm.bias", None, "1 missing, such as blip.visual_encoder.norm.bias"),
        ("blip.visual_encoder.blocks.2.norm1.bias", torch.zeros(16), "1 unknown, such as blip.visual_encoder.blocks.2"),
        ("mlp.layers.0.bias", torch.zeros(9), r"1 of another shape, such as mlp.layers.0.bias \[9\]"),
    ],
)
def test_keys_match_exactly(tmp_path, name, value, said):
    folder = tiny_blip.write(tmp_path, {name: value})
    with pytest.raises(ValueError, match=f"ImageReward.pt is not ImageReward 1.0: {said}"):
        ImageReward(folder).check(PROMPTS)


def test_projections_of_the_pretraining_may_be_missing(tmp_path):
    lost = {key: None for key in tiny_blip.shapes() if key.startswith(imagereward.UNUSED)}
    assert len(lost) == 5
    ImageReward(tiny_blip.write(tmp_path, lost)).check(PROMPTS)


def test_damage(tmp_path):
    folder = tiny_blip.write(tmp_path, {"mlp.layers.0.bias": torch.full((1024,), torch.nan)})
    with pytest.raises(ValueError, match=r"damaged, mlp.layers.0.bias has NaN"):
        ImageReward(folder)(views(some()), PROMPTS)
    (folder / "vocab.txt").write_text("\n".join(tiny_blip.WORDS[1:]))
    with pytest.raises(ValueError, match=r"vocab.txt is not the vocabulary .* \(36 words and no \[PAD\], expected 37"):
        ImageReward(folder).check(PROMPTS)
    (folder / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"vocab.txt is not the vocabulary of bert-base-uncased"):
        imagereward.tokenizer.cache_clear()
        ImageReward(folder).check(PROMPTS)


def test_bad_input(folder):
    with pytest.raises(ValueError, match="reward imagereward needs views with rgb"):
        ImageReward(folder)(replace(views(some()), rgb=None), PROMPTS)
    with pytest.raises(ValueError, match=r"reward imagereward needs colours from 0 to 1, got .* to 255"):
        ImageReward(folder)(views((some() > 0.5) * 255.0), PROMPTS)
