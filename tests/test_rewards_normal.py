"""The reward of seen normals: the estimator against the published code, frames, masks, gradients, files."""

import json
import math
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tiny_yoso
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from align3d.rewards import normal, yoso
from align3d.rewards.normal import Normal, in_its_axes
from align3d.scenes.cameras import canonical, orbit, world_to_camera
from align3d.types import Views

B, V, H, W = 2, 3, 32, 48
PROMPTS = ["a red cup", "a blue cup"]
RECORDED = Path(__file__).parent / "data" / "rewards" / "normal.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files."""
    found = tmp_path_factory.mktemp("yoso")
    tiny_yoso.write(found)
    return found


@pytest.fixture(scope="module")
def estimator(folder):
    return yoso.load(folder, torch.device("cpu"), torch.float32)


def cameras(height=H, width=W):
    """In odd poses, so that a frame taken for another is noticed."""
    azimuth = torch.tensor([[10.0, 100.0, 200.0], [33.0, 170.0, 300.0]])
    return orbit(azimuth, torch.tensor([[-20.0, 30.0, 5.0], [60.0, -40.0, 10.0]]), height=height, width=width)


def views(rgb=None, raw=None):
    """The recorded views, with normals from OpenCV camera axes to the world."""
    cams = cameras()
    rgb = tiny_yoso.pictures(B * V, H, W) if rgb is None else rgb
    raw = tiny_yoso.normals(B * V, H, W) if raw is None else raw
    world = torch.einsum("bvij,bvjhw->bvihw", cams.c2w[..., :3, :3], raw.unflatten(0, (B, V)))
    alpha = tiny_yoso.alphas(B * V, H, W).unflatten(0, (B, V))
    return Views(cams, rgb=rgb.unflatten(0, (B, V)), alpha=alpha, normal=world)


def replaced(given, **fields):
    return Views(**{**vars(given), **fields})


# The published code: scores of each view, and some of the gradient's numbers (data/rewards/README.md)


@pytest.mark.parametrize("context", ["inference", "train"])
def test_scores_and_gradient_are_those_of_the_published_code(folder, context):
    numbers = load_file(RECORDED)
    rgb, raw = tiny_yoso.pictures(B * V, H, W).requires_grad_(), tiny_yoso.normals(B * V, H, W).requires_grad_()
    scores = Normal(folder, context)(views(rgb, raw), PROMPTS)
    torch.testing.assert_close(scores.flatten(), numbers[f"{context}.scores"], rtol=1e-4, atol=1e-6)
    scores.sum().backward()
    want = numbers[f"{context}.by_normals"]
    torch.testing.assert_close(raw.grad[..., ::5, ::7], want, rtol=0, atol=1e-4 * float(want.abs().max()))
    if context == "inference":
        assert rgb.grad is None
        return
    want = numbers["train.by_images"]
    torch.testing.assert_close(rgb.grad[..., ::5, ::7], want, rtol=0, atol=1e-4 * float(want.abs().max()))
    assert (rgb.grad.flatten(1).norm(dim=1) > 1e-3).all() and rgb.grad.isfinite().all()


def test_16_bits_are_near_the_published_ones(folder):
    want = load_file(RECORDED)
    got = Normal(folder, precision="float16")(views(), PROMPTS).flatten()
    torch.testing.assert_close(got, want["inference.float16.scores"], rtol=0, atol=3e-3)
    assert (got - want["inference.scores"]).abs().max() > 1e-5  # it was 16 bits


# The estimator


def test_many_zero_texts_are_as_one(estimator, monkeypatch):
    """The published code has 257 zero vectors."""
    images = tiny_yoso.pictures(2, H, W)
    got, network = estimator(images), estimator.unet.forward
    more = {}

    def forward(latent, time, text, **rest):
        more["text"] = text.expand(-1, 257, -1)
        return network(latent, time, more["text"], **rest)

    monkeypatch.setattr(estimator.unet, "forward", forward)
    torch.testing.assert_close(estimator(images), got, rtol=1e-5, atol=1e-6)
    assert more["text"].shape == (2, 257, 1024) and not more["text"].any()


def test_normals_are_unit_and_rows_are_independent(estimator):
    images = tiny_yoso.pictures(3, H, W)
    together = estimator(images)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3, H, W))
    for i in range(3):
        torch.testing.assert_close(estimator(images[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-3)


def test_gradient_is_that_of_finite_differences(folder, monkeypatch):
    net = yoso.load(folder, torch.device("cpu"), torch.float32).double()
    images = tiny_yoso.pictures(2, 16, 24).double().requires_grad_()
    states = []
    original = yoso.side_states
    monkeypatch.setattr(yoso, "side_states", lambda *args: states.append(original(*args)) or states[0])  # a constant
    weights = tiny_yoso.noise(images.numel(), 7).reshape(images.shape)
    (slope,) = torch.autograd.grad((net(images) * weights).sum(), images)
    for seed in (1, 2):
        way, step = tiny_yoso.noise(images.numel(), seed).reshape(images.shape), 1e-7
        with torch.no_grad():
            ends = [float((net(images + sign * step * way) * weights).sum()) for sign in (1, -1)]
        assert math.isclose(float((slope * way).sum()), (ends[0] - ends[1]) / (2 * step), rel_tol=1e-5)


# The reward


class Fixed(torch.nn.Module):
    """An estimator that says what it is told to: normals in its own axes."""

    factor = 8

    def __init__(self, said):
        super().__init__()
        self.said, self.asked = said, []

    def forward(self, images):
        self.asked.append(images)
        return self.said.expand(len(images), 3, *images.shape[-2:]) + 0 * images


def told(monkeypatch, *said):
    fixed = Fixed(torch.tensor(said).reshape(1, 3, 1, 1))
    monkeypatch.setattr(Normal, "network", lambda *args: fixed)
    return fixed


@pytest.mark.parametrize(("axis", "said"), [(0, (-1.0, 0, 0)), (1, (0, -1.0, 0)), (2, (0, 0, -1.0))])
def test_its_axes_are_left_up_and_towards_the_camera(monkeypatch, axis, said):
    """A normal along an OpenCV axis (right, down, forward) is minus that axis in the estimator's."""
    told(monkeypatch, *said)
    raw = torch.zeros(B * V, 3, H, W)
    raw[:, axis] = 1
    torch.testing.assert_close(Normal(Path("x"))(views(raw=raw), PROMPTS), torch.ones(B, V))


def test_only_covered_pixels_count(monkeypatch):
    told(monkeypatch, 0.0, 0.0, 1.0)
    given = views()
    raw = tiny_yoso.normals(B * V, H, W)
    for least in (0.2, 0.5):
        mask = (tiny_yoso.alphas(B * V, H, W) > least).float()
        want = (-raw[:, 2:] * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
        torch.testing.assert_close(Normal(Path("x"), alpha=least)(given, PROMPTS).flatten(), want)
    nothing = replaced(given, alpha=torch.zeros_like(given.alpha))
    assert (Normal(Path("x"))(nothing, PROMPTS) == 0).all()


def test_slanted_normals_can_be_left_out(monkeypatch):
    """Those that the network sees, not the rendered ones; the slow twin goes pixel by pixel, in OpenCV axes."""
    said = torch.nn.functional.normalize(torch.tensor([0.4, -0.9, 0.5]), dim=0)
    told(monkeypatch, *said.tolist())
    given, limit = views(), 55.0
    got = Normal(Path("x"), max_angle=limit)(given, PROMPTS)
    raw, alpha, K = tiny_yoso.normals(B * V, H, W), tiny_yoso.alphas(B * V, H, W), given.cameras.K[0, 0]
    for row in range(B * V):
        values, left_out = [], 0
        for y in range(H):
            for x in range(W):
                ray = torch.stack([(x + 0.5 - K[0, 2]) / K[0, 0], (y + 0.5 - K[1, 2]) / K[1, 1], torch.ones(())])
                cosine = abs(float((ray / ray.norm() * -said).sum()))
                if alpha[row, 0, y, x] > 0.5 and cosine > math.cos(math.radians(limit)):
                    values.append(float((-raw[row, :, y, x] * said).sum()))
                left_out += cosine <= math.cos(math.radians(limit))
        assert 0 < left_out < H * W
        assert math.isclose(float(got.flatten()[row]), sum(values) / len(values), rel_tol=1e-4)


def test_rays_of_the_mask_are_the_cameras():
    _, rays = in_its_axes(views())
    centre = rays[..., H // 2, W // 2]
    assert (centre[..., 2] > 0.999).all()  # to the camera
    corner = rays[..., 0, 0]  # top left: the camera is to the right of it, and below
    assert (corner[..., 0] < 0).all() and (corner[..., 1] < 0).all()
    torch.testing.assert_close(rays.norm(dim=2), torch.ones(B, V, H, W))
    back = world_to_camera(cameras())[..., :3, :3]
    torch.testing.assert_close(back @ cameras().c2w[..., :3, :3], torch.eye(3).expand(B, V, 3, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("context", ["inference", "train"])
def test_every_view_has_a_gradient_whatever_the_batch(folder, context):
    rgb, raw = tiny_yoso.pictures(B * V, H, W).requires_grad_(), tiny_yoso.normals(B * V, H, W).requires_grad_()
    reward = Normal(folder, context)
    reward(views(rgb, raw), PROMPTS).sum().backward()
    slopes = [raw.grad] + [rgb.grad] * (context == "train")
    assert all(slope.isfinite().all() and (slope.flatten(1).norm(dim=1) > 0).all() for slope in slopes)
    alone = tiny_yoso.pictures(B * V, H, W).requires_grad_()
    given = views(alone)
    second = {name: getattr(given, name)[1:] for name in ("rgb", "alpha", "normal")}
    cams = given.cameras
    part = Views(type(cams)(cams.c2w[1:], cams.K[1:], H, W), **second)
    score = reward(part, PROMPTS[1:])
    torch.testing.assert_close(score, reward(views(), PROMPTS)[1:], rtol=1e-4, atol=1e-6)
    if context == "train":
        score.sum().backward()
        torch.testing.assert_close(alone.grad[V:], rgb.grad[V:], rtol=1e-3, atol=1e-5 * float(rgb.grad.abs().max()))


def test_a_first_look_in_inference_mode_does_no_harm(folder):
    normal.network.cache_clear()
    with torch.inference_mode():
        Normal(folder, "train")(views(), PROMPTS)
    rgb = tiny_yoso.pictures(B * V, H, W).requires_grad_()
    Normal(folder, "train")(views(rgb), PROMPTS).sum().backward()
    assert (rgb.grad.flatten(1).norm(dim=1) > 0).all()


def test_the_estimator_learns_of_no_gradient_in_inference(monkeypatch):
    fixed = told(monkeypatch, 0.0, 0.6, 0.8)
    rgb, raw = tiny_yoso.pictures(B * V, H, W).requires_grad_(), tiny_yoso.normals(B * V, H, W).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        score = Normal(Path("x"))(views(rgb, raw), PROMPTS)
    assert score.requires_grad and score.dtype == torch.float32 and rgb.grad is None
    assert all(images.dtype == torch.float32 for images in fixed.asked)


# Files and bad input


def test_check_reads_no_weights_and_says_where_they_are(folder, tmp_path):
    Normal(folder).check(PROMPTS)
    where = "https://huggingface.co/Stable-X/yoso-normal-v1-7"
    with pytest.raises(FileNotFoundError, match=f"--reward.weights FOLDER, .*download normal .* {where}: vae"):
        Normal().check(PROMPTS)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/vae/config.json is missing; .* {where}"):
        Normal(tmp_path).check(PROMPTS)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/vae/config.json is missing; .* {where}"):
        Normal(tmp_path)(views(), PROMPTS)


def test_files_are_compared_once(folder, monkeypatch):
    asked = []
    original = yoso.check_part
    monkeypatch.setattr(yoso, "check_part", lambda *args: asked.append(args) or original(*args))
    yoso.check.cache_clear()
    for prompt in PROMPTS:
        Normal(folder).check([prompt])
    assert len(asked) == 3


@pytest.mark.parametrize("part", ["vae", "controlnet", "unet"])
def test_keys_match_exactly(tmp_path, part):
    tiny_yoso.write(tmp_path / "x", fp16=False)
    file = tmp_path / "x" / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[3]
    save_file({**{key: value for key, value in tensors.items() if key != name}, "more": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=f"{part}.* does not fit .*: 1 missing, such as {name}; 1 unknown, such as more"
    ):
        Normal(tmp_path / "x").check(PROMPTS)


def test_networks_that_do_not_belong_together_are_refused(tmp_path):
    tiny_yoso.write(tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "controlnet")
    config = tiny_yoso.CONTROL | {"block_out_channels": [8, 8, 16, 16]}
    tiny_yoso.save(tmp_path / "x" / "controlnet", config, ControlNetModel.from_config(config))
    with pytest.raises(ValueError, match="do not belong together"):
        Normal(tmp_path / "x").check(PROMPTS)


def test_what_is_downloaded_is_what_is_read(folder):
    (patterns,) = Normal.sources["weights"].values()
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(there) == 6 and all(any(fnmatch(name, pattern) for pattern in patterns) for name in there)
    assert json.loads((folder / "controlnet" / "config.json").read_text())["_class_name"] == "ControlNetVAEModel"


def test_bad_input(monkeypatch):
    told(monkeypatch, 0.0, 0.0, 1.0)
    given = views()
    with pytest.raises(ValueError, match="reward normal needs views with normal, got only rgb, alpha"):
        Normal(Path("x"))(replaced(given, normal=None), PROMPTS)
    small = Views(
        canonical(2, 20, 30), **{n: torch.zeros(2, 4, c, 20, 30) for n, c in (("rgb", 3), ("alpha", 1), ("normal", 3))}
    )
    with pytest.raises(ValueError, match="multiples of 8 pixels, got 20 x 30"):
        Normal(Path("x"))(small, PROMPTS)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\), got 1.0"):
        Normal(alpha=1.0)
    with pytest.raises(ValueError, match=r"max_angle must be in \(0, 90\] degrees, got 0"):
        Normal(max_angle=0.0)
