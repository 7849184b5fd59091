"""Feature networks: the numbers of the originals, gradients, and files that are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from align3d.features import FEATURES, FeatureNetwork, inception
from align3d.features.clip import ClipFeatures
from align3d.features.inception import InceptionFeatures
from align3d.registry import load
from align3d.rewards.clip_scores import preprocessing
from align3d.rng import stream


def pictures(n, h, w, key="images"):
    return torch.rand(n, 3, h, w, generator=stream("inception", key))


def same_gradients(network, images):
    """Every image gets a finite gradient that is not zero, and does not depend on the others."""
    images = images.requires_grad_()
    weights = torch.randn(network.dims, generator=stream("weights"))
    features = network(images)
    (gradient,) = torch.autograd.grad((features @ weights).sum(), images)
    assert bool(gradient.isfinite().all()) and float(gradient.flatten(1).norm(dim=1).min()) > 0
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-4)
    return gradient


# --- Inception


@pytest.fixture(scope="module")
def state():
    """Random weights in the published layout."""
    state = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, shape in inception.layout():
        g = stream("inception", name)
        c = shape[0]
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=g) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[f"{name}.bn.weight"] = 0.75 + 0.5 * torch.rand(c, generator=g)
        state[f"{name}.bn.bias"] = 0.2 * torch.randn(c, generator=g)
        state[f"{name}.bn.running_mean"] = 0.2 * torch.randn(c, generator=g)
        state[f"{name}.bn.running_var"] = 0.75 + 0.5 * torch.rand(c, generator=g)
    return state


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    torch.save(state | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}, folder / inception.FILE)
    yield folder
    inception.network.cache_clear()
    (folder / inception.FILE).unlink()


# pytorch-fid's own network (commit b9c1811, torchvision 0.29's blocks) with these weights and images of 24 x 40
# pixels: means of 16 runs of 128 features, and the difference of the two images in the same.
EXPECTED = [
    1.102582, 0.925011, 1.284336, 1.406911, 1.470223, 1.300054, 1.221256, 1.143317,
    1.165351, 0.923604, 1.030615, 0.961578, 1.007978, 0.888873, 1.436254, 1.458107,
]  # fmt: skip
DIFFERENCE = [
    -0.029093, -0.035934, -0.040534, -0.04993, -0.045285, -0.038051, -0.041401, -0.039474,
    -0.033538, -0.034682, -0.031006, -0.040233, -0.031365, -0.033159, -0.044435, -0.051791,
]  # fmt: skip


def test_inception_gives_the_numbers_of_the_original(weights):
    network = InceptionFeatures(weights)
    with torch.no_grad():
        means = network(pictures(2, 24, 40)).unflatten(1, (16, 128)).mean(-1)
    torch.testing.assert_close(means[0], torch.tensor(EXPECTED), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means[0] - means[1], torch.tensor(DIFFERENCE), rtol=1e-3, atol=1e-5)


def test_inception_has_the_published_layout():
    names = dict(inception.layout())
    assert len(names) == 94
    assert names["Mixed_6c.branch7x7dbl_3"] == (160, 160, 1, 7)
    assert names["Mixed_7a.branch3x3_1"] == (192, 768, 1, 1)
    assert names["Mixed_7c.branch3x3dbl_3b"] == (384, 384, 3, 1)
    assert sum(np.prod(shape) for shape in names.values()) == 21_751_136  # torchvision's, without head and norms


def test_inception_differentiates_to_every_image(weights):
    same_gradients(InceptionFeatures(weights, size=80), pictures(2, 24, 40))
    assert InceptionFeatures(weights, size=80)(pictures(0, 8, 9)).shape == (0, 2048)


def test_inception_reads_any_of_the_files(weights, state, tmp_path):
    save_file(state, tmp_path / "same.safetensors")
    images = pictures(1, 20, 30)
    a = InceptionFeatures(tmp_path, size=75)(images)
    torch.testing.assert_close(a, InceptionFeatures(weights / inception.FILE, size=75)(images), rtol=0, atol=0)
    (tmp_path / "other.pt").touch()
    with pytest.raises(ValueError, match="2 files that may hold weights"):
        InceptionFeatures(tmp_path).check()


def test_inception_files_that_are_refused(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at .*nowhere; pt_inception"):
        InceptionFeatures(tmp_path / "nowhere").check()
    with pytest.raises(ValueError, match="75 pixels or more, got 64"):
        InceptionFeatures(weights, size=64)
    cut = tmp_path / "cut.pth"
    cut.write_bytes((weights / inception.FILE).read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cannot read .*cut.pth: damaged"):
        InceptionFeatures(cut).check()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        InceptionFeatures(tmp_path / "list.pth").check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fc.bias": None}, "'fc.bias' is missing"),
        ({"AuxLogits.fc.bias": torch.zeros(3)}, "'AuxLogits.fc.bias' is left over"),
        ({"fc.weight": torch.zeros(1000, 2048)}, r"'fc.weight' should be \(1008, 2048\), got \(1000, 2048\)"),
        ({"fc.bias": "text"}, "got str"),
        ({"fc.bias": torch.full((1008,), torch.nan)}, "damaged, 'fc.bias' has numbers that are not finite"),
    ],
)
def test_inception_weights_of_something_else(state, change, words):
    wrong = {key: value for key, value in (state | change).items() if value is not None}
    with pytest.raises(ValueError, match=words) as error:
        inception.convert(wrong, Path("x.pth"))
    assert "\n" not in str(error.value) and "x.pth" in str(error.value)


# --- CLIP

STEPS = {
    "do_resize": True, "size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 30, "width": 28}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip


def clip_configs(projection=24):
    """Of a whole model, whose two halves do not know how long its features are."""
    from transformers import CLIPConfig

    common = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = common | {"image_size": 28, "patch_size": 14}
    text = common | {"vocab_size": 50, "max_position_embeddings": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(clip_configs()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(STEPS | {"crop_size": 28}))
    return folder


@pytest.fixture
def broken(clip, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(clip, tmp_path / "clip"))


def smooth(h, w):
    """A picture with edges and a white background, as 8-bit pixels."""
    y, x = np.mgrid[0:h, 0:w] / max(h, w)
    inside = (y - 0.4) ** 2 + (x - 0.45) ** 2 < 0.1
    pixels = np.stack([0.5 + 0.5 * np.sin(9 * x), y, 0.5 + 0.5 * np.cos(7 * x * y)], -1)
    return Image.fromarray((np.where(inside[..., None], pixels, 1.0) * 255).round().astype(np.uint8))


@pytest.mark.parametrize("shape", [(75, 120), (119, 64), (20, 27), (32, 32)])
@pytest.mark.parametrize("change", [{}, {"resample": 2}, {"size": {"height": 44, "width": 31}}, {"do_resize": False}])
def test_clip_preprocessing_is_that_of_transformers(shape, change, tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if "do_resize" in change and min(shape) < 30:
        pytest.skip("smaller than the crop")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(STEPS | change))
    picture = smooth(*shape)
    wanted = CLIPImageProcessorPil(**STEPS | change)(picture, return_tensors="pt")["pixel_values"]
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    got = preprocessing(tmp_path)(images)
    # PIL rounds to 8 bit after either direction, and Pillow 13 takes the cheaper one first if the aspect ratio changes,
    # which matters where a wave beside an edge is cut off
    step = 1 / 255 / 0.26
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=0, atol=step * (8 if "size" in change else 1.6))
    assert float((got - wanted).abs().mean()) < 0.4 * step


@pytest.mark.parametrize("kind", ["whole", "vision"])
def test_clip_features_are_those_of_transformers(clip, kind, tmp_path):
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    whole, folder = CLIPModel.from_pretrained(clip).eval(), clip
    if kind == "vision":
        CLIPVisionModelWithProjection.from_pretrained(clip, projection_dim=24).save_pretrained(tmp_path)
        shutil.copy(clip / "preprocessor_config.json", tmp_path)
        folder = tmp_path
    features = ClipFeatures(folder)
    features.check()
    images = pictures(2, 20, 27)
    with torch.no_grad():
        inputs = preprocessing(folder)(images)
        wanted = whole.visual_projection(whole.vision_model(pixel_values=inputs).pooler_output)
        got = features(images)
    assert features.dims == 24 and got.shape == (2, 24)
    torch.testing.assert_close(got, torch.nn.functional.normalize(wanted, dim=-1))
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(2))


def test_clip_differentiates_to_every_image(clip):
    gradient = same_gradients(ClipFeatures(clip), 0.1 + 0.8 * pictures(2, 40, 31))
    assert float(gradient[0, :, 20].abs().sum()) > 0  # a row in the middle


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_clip_files_that_are_missing_or_cut(broken, name):
    data = (broken / name).read_bytes()
    (broken / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="copy it again") as error:
        ClipFeatures(broken).check()
    assert "\n" not in str(error.value)
    (broken / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        ClipFeatures(broken).check()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", {"model_type": "bert"}, "model of type 'bert'"),
        ("config.json", {"projection_dim": 10**9}, "projection_dim must be 1 to"),
        ("config.json", {"projection_dim": 25}, "2 of another shape, such as text_projection.weight"),
        ("config.json", {"vision_config": {"hidden_size": 15360, "num_hidden_layers": 200}}, "78 tensors are too few"),
        ("config.json", {"vision_config": {"hidden_size": 17, "num_attention_heads": 2}}, "describes no network"),
        ("config.json", {"vision_config": {"num_hidden_layers": 999}}, "num_hidden_layers must be 1 to 256"),
        ("config.json", {"vision_config": 3}, "vision_config is no object"),
        ("preprocessor_config.json", {"resample": 1}, "resample 1 is not known"),
        ("preprocessor_config.json", {"size": {"longest_edge": 9}}, "size must be shortest_edge or height and width"),
        ("preprocessor_config.json", {"crop_size": 0}, "crop_size must be"),
        ("preprocessor_config.json", {"crop_size": 20}, r"makes pictures of \(20, 20\) pixels, the network takes 28"),
        ("preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "1/255"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "three numbers"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.0, 0.5]}, "image_std must be positive"),
    ],
)
def test_clip_folders_of_something_else(broken, name, change, words):
    path = broken / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        ClipFeatures(broken).check()


def test_clip_says_when_an_image_is_too_small_for_its_crop(broken):
    (broken / "preprocessor_config.json").write_text(json.dumps(STEPS | {"do_resize": False, "crop_size": 28}))
    with pytest.raises(ValueError, match="20 x 60 pixels are too small for a crop of 28 x 28"):
        ClipFeatures(broken)(pictures(1, 20, 60))


# --- all


def test_the_table_holds_feature_networks(weights, clip):
    made = {"inception": {"folder": weights}, "clip": {"folder": clip}}
    for name in FEATURES:
        assert isinstance(load(FEATURES, name)(**made.get(name, {})), FeatureNetwork)
