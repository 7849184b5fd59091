"""GaussianCube on tiny checkpoints: network and Gaussians against the published code, and the contract."""

from dataclasses import replace

import pytest
import tiny_gaussiancube as tiny
import torch
from tiny_gaussiancube import PARTS, PROMPTS, inputs, load
from torch import nn

from align3d.diffusion.sampler import rollout, sampling_times
from align3d.diffusion.schedule import bcast, eps_from_x0, x0_from_eps
from align3d.diffusion.transition import score_scale
from align3d.methods.nabla import Nabla
from align3d.methods.transitions import Chain
from align3d.models.gaussiancube import CubeCond, Space
from align3d.models.nets.gaussiancube_unet import Architecture, CubeUNet
from align3d.rng import Streams
from align3d.scenes.cameras import orbit


@pytest.fixture(scope="module")
def published():
    return tiny.recorded()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_all(tmp_path_factory, side=4)  # quicker


@pytest.fixture(params=PARTS)
def kind(request):
    return request.param


def asked(kind):
    """What the recorded cubes are conditioned on."""
    return {"text": (inputs()[1], None), "class": (None, torch.tensor([1, 5])), "nothing": ()}[kind]


def test_a_state_dict_says_which_network_it_is_for(kind):
    own = tiny.KINDS[kind]
    shapes = {name: tuple(value.shape) for name, value in tiny.network(own).state_dict().items()}
    assert Architecture.of(shapes) == own


def test_the_published_text_network_has_as_many_parameters_as_they_say():
    own = Architecture((128, 256, 384, 512), 3, (False, False, True, True), 128, 14, text=768, text_width=512)
    with torch.device("meta"):
        network = CubeUNet(own)
    assert sum(p.numel() for p in network.parameters()) == 339_007_516
    assert Architecture.of({name: tuple(value.shape) for name, value in network.state_dict().items()}) == own


def test_the_network_is_the_published_one(published, kind):
    """Its heads, each of several numbers, lie where they must."""
    own, x = tiny.KINDS[kind], inputs()[0]
    assert max(own.widths) >= 2 * own.head and own.text in {0, 2 * own.pooling_heads} and own.text_width in {0, 64}
    with torch.no_grad():
        found = tiny.network(own)(x, torch.tensor([3.5, 918.0]), *asked(kind))
    torch.testing.assert_close(found, published[f"network_{kind}"], rtol=1e-5, atol=2e-5)


def test_recomputing_changes_nothing(folders, kind):
    """But that every block runs twice."""
    grads, runs = [], []
    for recompute in (False, True):
        network = load(folders, kind, recompute=recompute).network.requires_grad_()
        blocks = [*network.input_blocks, network.middle_block, *network.output_blocks]
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: runs.append(None))
        own = inputs()[0].requires_grad_()
        network(own, torch.tensor([3.0, 700.0]), *asked(kind)).square().sum().backward()
        grads.append([own.grad, *(p.grad for p in network.parameters())])
    assert len(runs) == 3 * len(blocks)
    for one, two in zip(*grads, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_the_model_runs_in_bfloat16(folders, kind, layers):
    """The network alone: what goes in and out is float32, and so is the adapter, which every sample moves."""
    x, labels = inputs()[0], torch.tensor([3.0, 700.0])
    exact, model = (load(folders, kind, precision=p, layers=layers, guidance=1.5) for p in ("float32", "bfloat16"))
    cond = model.encode(PROMPTS[kind])
    found = model.clean(x, labels, cond)
    want = exact.clean(x, labels, cond)
    assert found.dtype == torch.float32 and model.network.out[2].weight.dtype == torch.bfloat16
    assert 1e-4 * want.norm() < (found - want).norm() < 0.05 * want.norm()
    assert all(p.dtype == torch.float32 for p in model.adapter.parameters())
    for row in found:
        grads = torch.autograd.grad(row.square().sum(), model.adapter.parameters(), retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads) and sum(float(g.abs().sum()) for g in grads) > 0


def test_no_text_is_zeros(folders):
    """Ones, which a norm of each number by itself would take for the same, are something else."""
    model = load(folders, "text", guidance=1.0)
    none, some = model.encode(["", "a red mug"]).text
    assert none.shape == (77, 128) and bool((none == 0).all()) and bool((some != 0).any())
    assert torch.equal(model.encode([""]).text[0], none)
    x, t = inputs()[0], torch.tensor([3.0, 700.0])
    with torch.no_grad():
        zeros, ones = (model.clean(x, t, CubeCond(text=torch.full((2, 77, 128), value))) for value in (0.0, 1.0))
        guided = replace(model, guidance=3.5)
        seen = guided.clean(x, t, CubeCond(text=inputs()[1]))
        want = zeros + 3.5 * (model.clean(x, t, CubeCond(text=inputs()[1])) - zeros)
    assert float((ones - zeros).norm()) > 0.1 * float(zeros.norm())
    torch.testing.assert_close(seen, want, rtol=1e-4, atol=1e-4)


def test_labels_fit_the_levels(folders, kind):
    """The label of an entry's time is the entry's number in the whole table; published, it is another."""
    model = load(folders, kind)
    number = torch.tensor([0, 1, 400, model.levels.num - 1])
    t = (number + 1).double() / model.levels.num
    assert torch.allclose(model.label(t), number.float(), atol=1e-3)
    whole = model.schedule.alpha(number.double() / 999)
    torch.testing.assert_close(model.levels.alpha(t), whole, rtol=1e-9, atol=0)
    model.labels = "published"
    assert model.label(t)[-1] == pytest.approx(1000 * (1 - 1 / model.levels.num), abs=1e-2)


def test_gaussians_are_the_published_ones(published):
    """In their own world; ours is turned: their Z is our Y, and what faces -Y there faces +Z here."""
    x = tiny.spread(inputs()[0][:1])
    mean, std = (value[:, :4, :6].permute(3, 0, 1, 2) for value in tiny.norms())
    found = Space(mean, std, 0.45).gaussians(x)
    own = {name.removeprefix("parsed_"): value for name, value in published.items() if name.startswith("parsed_")}
    xyz = own["xyz"]
    turned = torch.stack([xyz[:, 0], xyz[:, 2], -xyz[:, 1]], -1)
    torch.testing.assert_close(found.means[0], turned, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.scales[0], own["scales"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.opacities[0], own["opacities"][:, 0], rtol=1e-5, atol=1e-6)
    colours = (0.28209479177387814 * own["shs"][:, 0] + 0.5).clamp(0, 1)
    torch.testing.assert_close(found.colors[0], colours, rtol=1e-5, atol=1e-6)
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    for q, other in zip(found.quats[0], own["rots"], strict=True):
        torch.testing.assert_close(matrix(q), turn @ matrix(other), rtol=1e-5, atol=1e-5)
    half = Space(mean, std, 0.45, size=2.0).gaussians(x)
    assert torch.allclose(half.means, 2 * found.means) and torch.allclose(half.scales, 2 * found.scales)
    clamped = (found.scales, found.opacities, found.colors)
    assert all(bool((value == end).any()) for value in clamped for end in (0, 1)), "at both ends"
    assert (found.raster.eps2d, found.raster.near) == (0.3, 0.2)


def matrix(q):
    w, x, y, z = q.tolist()
    rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]]
    rows += [[2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]]
    rows += [[2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]
    return torch.tensor(rows)


def test_a_sphere_made_by_hand_renders_as_a_sphere():
    """And what is red on their +X is red from our azimuth 90; their -Y, our front, is green."""
    side, bound = 16, 0.5
    axis = torch.linspace(-bound, bound, side)
    X, Y, Z = torch.meshgrid(axis, axis, axis, indexing="ij")
    cube = torch.zeros(14, side, side, side)
    cube[3:6] = -2.0  # black
    cube[3][X > 0.2], cube[4][Y < -0.2] = 2.0, 2.0
    cube[6] = ((X**2 + Y**2 + Z**2).sqrt() < 0.4).float()
    cube[7:10], cube[10] = 0.03, 1.0
    space = Space(torch.zeros_like(cube), torch.ones_like(cube), bound)
    azimuth = torch.tensor([[0.0, 90.0, 180.0]])
    views = space.gaussians(cube[None]).render(orbit(azimuth, torch.zeros_like(azimuth), height=64, width=64))
    covered = views.alpha[0, :, 0].mean((1, 2))
    radius = 0.43 * 1422.222 / 1024 / (1.4**2 - 0.43**2) ** 0.5  # of its soft outline, in widths of the picture
    assert torch.allclose(covered, torch.full_like(covered, torch.pi * radius**2), rtol=0.03)
    middle = views.rgb[0, :, :, 32, 32]
    assert (middle[0] > torch.tensor([-1, 0.9, -1])).all() and middle[0, 0] < 0.1, "green in front"
    assert middle[1, 0] > 0.9 and middle[1, 1] < 0.1, "red from azimuth 90"
    assert middle[2].max() < 0.1, "black behind"


def test_a_prediction_stands_for_the_clean_cube_of_the_network(folders, kind):
    model = load(folders, kind, guidance=3.5)
    x, t, cond = inputs()[0], torch.tensor([0.3, 0.8]), model.encode(PROMPTS[kind])
    with torch.no_grad():
        eps = model.predict(x, t, cond)
        x0 = x0_from_eps(model.schedule, x, eps, t)
        model.guidance = 1.0
        plain = model.clean(x, model.schedule.index(t).float(), cond)
        own = model.network.architecture
        null = CubeCond(
            text=torch.zeros_like(cond.text) if own.text else None,
            classes=torch.full_like(cond.classes, own.classes) if own.classes else None,
        )
        without = model.clean(x, model.schedule.index(t).float(), null)
    a, b = (eps_from_x0(model.schedule, x, found.double(), t) for found in (plain, without))
    guided = b + 3.5 * (a - b)  # of the noise, as published
    torch.testing.assert_close(eps, guided, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x0, (without + 3.5 * (plain - without)).double(), rtol=0, atol=1e-4)
    assert (plain - without).abs().max() > 1e-3 or kind == "nothing"


def test_scores_differ_by_the_clean_cubes_also_where_there_is_hardly_any_signal(folders, kind):
    """score_theta - score_ref = alpha_s / sigma_s^2 (x0_theta - x0_ref) at eta 1, in the first step as in the last."""
    model = load(folders, kind, guidance=2.0)
    move(model.adapter, 1e-3)
    rng = Streams.batch(0, 0, 0, 2)
    times = torch.linspace(1, 0, 51)
    with torch.no_grad():
        first = rollout(model, PROMPTS[kind], times[:2], rng)
    x, cond = first.x[:, 0], model.encode(PROMPTS[kind])
    for step in (0, 1, 48):
        t, s = (time.expand(2) for time in times[step : step + 2])
        k = bcast(score_scale(model.schedule, t.double(), s.double()), x)

        def both(t=t):
            with torch.no_grad():
                return model.predict(x, t, cond), model.clean(x, model.schedule.index(t).float(), cond).double()

        eps, x0 = both()
        with model.reference():
            eps_ref, x0_ref = both()
        scale = model.schedule.alpha(s.double()) / model.schedule.sigma(s.double()) ** 2
        want = bcast(scale, x0) * (x0 - x0_ref)
        assert float(want.norm()) > 0
        assert float((-k.double() * (eps - eps_ref) - want).norm() / want.norm()) < 1e-6
        if step == 0:
            assert torch.equal(first.eps[:, 0], eps), "the sampler's own, on which Nabla trains, keeps the digits"
    assert first.x.dtype == torch.float32


def test_rewards_are_at_the_clean_cube_of_the_next_state(folders, kind):
    """Nabla's estimate is what the network said there, though it goes by way of the noise."""
    model, seen = load(folders, kind), []
    rng, times = Streams.batch(0, 0, 0, 2), sampling_times(replace(model, steps=4))
    chain = Chain(model, PROMPTS[kind], times, rng, 1.0)
    chain.sample(len(chain))
    x, cond = chain.x[1], model.encode(PROMPTS[kind])
    with torch.no_grad():
        want = model.clean(x, model.schedule.index(times[1].expand(2)).float(), cond)
    decode = model.decode
    model.decode = lambda x0: seen.append(x0.detach().clone()) or decode(x0)

    def score(scene, prompts, rng):
        return scene.means.square().mean((1, 2))

    grad, _ = Nabla(beta=1.0).reward_gradient(model, score, chain.gather([0]))
    torch.testing.assert_close(torch.cat(seen), want, rtol=1e-6, atol=1e-6)
    assert bool((grad.flatten(1).norm(dim=1) > 0).all()) and bool(grad.isfinite().all())


def move(adapter, by):
    with torch.no_grad():
        for _, p in adapter.named_parameters():
            p.add_(by)


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_every_sample_moves_the_adapter_and_the_reference_is_without(folders, kind, layers):
    model = load(folders, kind, layers=layers)
    x, t, cond = inputs()[0], torch.tensor([0.3, 0.8]), model.encode(PROMPTS[kind])
    with torch.no_grad():
        before = model.predict(x, t, cond)
    move(model.adapter, 0.05)
    after = model.predict(x, t, cond)
    assert bool(((after - before).flatten(1).norm(dim=1) > 1e-3).all())
    with model.reference():
        assert torch.allclose(model.predict(x, t, cond), before, atol=1e-5)
    for row in after:
        grads = torch.autograd.grad(row.square().sum(), model.adapter.parameters(), retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads) and sum(float(g.abs().sum()) for g in grads) > 0
    names = {name.partition(".lora_")[0] for name, _ in model.adapter.named_parameters()}
    fresh = dict(tiny.network(tiny.KINDS[kind]).named_modules())
    wanted = {name for name, module in fresh.items() if isinstance(module, nn.Conv1d)}  # all that attention has
    assert ("encoder_kv" in {name.rpartition(".")[2] for name in wanted}) == (kind == "text")
    if layers == "all":
        ends = ("in_layers.2", "out_layers.3", "emb_layers.1")
        wanted |= {name for name in fresh if name.endswith(ends)}
    assert names == wanted


def test_clean_cubes_get_a_gradient_from_every_view(folders, kind):
    model = load(folders, kind)
    x0 = (0.3 * torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    azimuth = torch.tensor([[0.0, 90.0, 200.0]]).expand(2, -1)
    views = model.decode(x0).render(orbit(azimuth, torch.zeros_like(azimuth), height=24, width=20))
    for view in views.rgb.flatten(0, 1):
        (grad,) = torch.autograd.grad(view.square().sum(), x0, retain_graph=True)
        assert bool(grad.isfinite().all()) and float(grad.abs().sum()) > 0
