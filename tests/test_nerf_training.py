"""Neural radiance fields that are optimised under a prior whose answers are known, in the same loop as all else."""

from dataclasses import replace

import pytest
import torch
from closed_prior import SOLID, EllipsoidPrior

from align3d.loop import Loop, fit
from align3d.methods.sds import SDS
from align3d.rng import Streams
from align3d.scenes.lens_rings import LensRing
from align3d.scenes.nerf.options import Backdrop, HashGrid, March, Penalties, Shading, TriPlane
from align3d.scenes.rings import Ring
from align3d.starts import NerfStart, Stage
from align3d.types import Scene, Subject

RING = Ring(views=3, size=12)
WHITE = (1.0, 1.0, 1.0)
LOOP = Loop(updates=60, batch_size=2, learning_rate=0.01, betas=(0.9, 0.99), eps=1e-15, warmup=0, weight_decay=0.0)
LOOP = replace(LOOP, max_grad_norm=0.0)
SMALL = NerfStart(
    hidden=16,
    triplane=TriPlane(side=16, features=4),
    hash=HashGrid(levels=4, log2_size=10, finest=32),
    march=March(samples=32, cells=16),
    net_rate=0.01,
    mesh=0,
)
FAIR = SDS(guidance=1.0, t_max=(0.98, 0.3), anneal=40)
RAMP = (0.0, 1.0, 2.0, 10.0)
ALL = replace(
    SMALL,
    backdrop=Backdrop("learned", random=0.3),
    shading=Shading(start=0, albedo=0.2),
    penalties=Penalties(orient=RAMP, sparsity=RAMP, opaque=RAMP, z_variance=RAMP),
)


def subject(start=SMALL, ring=RING, seed=0):
    return start.subject(Stage(EllipsoidPrior(size=ring.size, views=ring.views), ring, WHITE, seed=seed))


def trained(one, loop=LOOP, prompt="a red thing", **options):
    return fit(one, FAIR, lambda *_: None, [prompt], loop, progress=False, **options)


def values(one):
    return [p.detach().clone() for p in one.trained.parameters()]


def streams(update=0, rows=2, first=0):
    return Streams.batch(0, update, first, rows)


def test_it_is_a_subject_with_a_scene():
    one = subject()
    assert isinstance(one, Subject) and isinstance(one.scene(), Scene)
    scene = one.scene()
    assert scene.index(1) is scene and scene.to("cpu") is scene
    assert set(one.files()) == {"scene.safetensors"}


@pytest.mark.parametrize(("name", "grid"), [("red", "triplane"), ("blue", "hash")])
def test_a_field_takes_the_colour_and_the_shape_that_the_prior_knows(name, grid):
    one = subject(replace(SMALL, grid=grid))
    trained(one, prompt=f"a {name} thing")
    cameras = Ring(views=4, size=24)(streams(5, 1))
    with torch.no_grad():
        views = one.scene().render(cameras, want=("rgb", "alpha"))
    solid = views.alpha[0] > 0.5
    masks = one.prior.masks(cameras, 0) > 0.5
    overlap = [float((solid & mask).sum() / (solid | mask).sum()) for mask in masks]
    assert max(overlap) > 0.6, overlap
    colour = views.rgb[0].movedim(1, -1)[views.alpha[0, :, 0] > 0.8].mean(0)
    far = {other: float((colour - torch.tensor(rgb)).norm()) for other, rgb in SOLID.items()}
    assert min(far, key=far.get) == name and far[name] < 0.4


@pytest.mark.parametrize("grid", ["triplane", "hash"])
def test_every_part_and_every_row_has_a_gradient(grid):
    one = subject(replace(ALL, grid=grid))
    named = {n: p for n, p in one.trained.named_parameters() if n != "taken"}
    for update in range(1, 6):  # with light and without, on plain colours and on the network's
        look = one.look(streams(update))
        assert look.latents.shape == (2, 3, 3, 12, 12) and set(look.penalties) == {
            *("orient", "sparsity", "opaque", "z_variance")
        }
        for i in range(2):
            pull = look.latents[i].square().sum()
            grads = torch.autograd.grad(pull, list(named.values()), retain_graph=True, allow_unused=True)
            found = {n: g for n, g in zip(named, grads, strict=True) if g is not None}
            assert all(torch.isfinite(g).all() for g in found.values())
            assert all(found[n].abs().max() > 0 for n in found if "color" not in n and "background" not in n)
    total = sum(one.look(streams(u)).latents.square().sum() for u in range(6))
    for name, grad in zip(named, torch.autograd.grad(total, list(named.values())), strict=True):
        assert torch.isfinite(grad).all() and grad.abs().max() > 0, name
    for name, penalty in look.penalties.items():
        grads = torch.autograd.grad(penalty, [named["field.density_net.layers.1"]], retain_graph=True)
        assert torch.isfinite(grads[0]).all() and grads[0].abs().max() > 0, name


def test_a_row_sees_its_own_cameras_alone():
    one = subject()
    both, second = one.look(streams()).latents, one.look(streams(rows=1, first=1)).latents
    torch.testing.assert_close(both[1:], second)
    assert (both[0] - both[1]).abs().max() > 0.01


def test_a_scene_moves_only_where_it_is_seen():
    ring = replace(RING, views=1, turn=0.0, elevation=(0.0, 0.0), focal=6.0)  # along z, through the middle
    one = subject(replace(SMALL, triplane=TriPlane(side=32, features=4)), ring)
    one.look(streams(1)).latents.square().sum().backward()
    xy = one.trained.field.grid.planes.grad[0].abs().sum(0)
    assert (xy[14:18, 14:18] > 0).all()
    xy[11:21, 11:21] = 0
    assert (xy == 0).all()


def test_learning_rates_are_those_of_the_part():
    from align3d.trainer import Trainer

    one = subject(replace(ALL, grid_rate=0.02, net_rate=0.003))
    run = Trainer.start(one, FAIR, lambda *_: None, ["a thing"], LOOP)
    found = {p: group["lr"] for group in run.state.optimizer.param_groups for p in group["params"]}
    for name, parameter in one.trained.named_parameters():
        wanted = LOOP.learning_rate if name == "taken" else 0.02 if ".grid." in name else 0.003
        assert found[parameter] == wanted, name


@pytest.mark.parametrize("start", [SMALL, ALL], ids=["plain", "all"])
def test_a_run_goes_on_to_the_same_bits(tmp_path, start):
    """The cells that are empty are part of the state: the run stops between two looks at them."""
    start = replace(start, march=replace(start.march, every=4, warmup=4))
    loop = replace(LOOP, updates=11, checkpoint_every=3)
    whole = subject(start)
    trained(whole, loop, out=tmp_path / "whole")
    trained(subject(start), replace(loop, updates=6), out=tmp_path / "parts")
    parts = subject(start)
    trained(parts, loop, out=tmp_path / "parts", resume=True)
    assert all(map(torch.equal, values(whole), values(parts)))
    assert float(parts.trained.taken.detach().max()) > 0 and parts.trained.taken.grad is None
    again = subject(start)
    trained(again, loop)
    assert all(map(torch.equal, values(whole), values(again)))


def test_two_batches_are_one():
    one, two = subject(ALL), subject(ALL)
    trained(one, replace(LOOP, updates=2))
    trained(two, replace(LOOP, updates=2, batch_size=1, accumulate=2))
    assert torch.equal(one.trained.taken, two.trained.taken)
    for a, b in zip(values(one), values(two), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_penalties_pull():
    """A field that is penalised for all that is opaque fades."""
    thin = replace(SMALL, penalties=Penalties(sparsity=(0.0, 1e4, 1e4, 0.0)))
    seen = []
    for start in (SMALL, thin):
        one = subject(start)
        trained(one, replace(LOOP, updates=15))
        with torch.no_grad():
            seen.append(float(one.scene().render(RING(streams(3, 1)), ("alpha",)).alpha.mean()))
    assert seen[1] < 0.9 * seen[0]


def test_pictures_may_grow_along_a_run(tmp_path):
    ring, loop = LensRing(views=2, size=(6, 10), grow=(2,)), replace(LOOP, updates=4, checkpoint_every=1)
    ends = []
    for name, updates in (("whole", 4), ("parts", 1), ("parts", 4)):
        stage = Stage(EllipsoidPrior(size=10, views=2), ring, WHITE)
        one = SMALL.subject(stage)
        assert [one.look(streams(update)).latents.shape[-1] for update in (1, 2)] == [6, 10]
        one.trained.load_state_dict(SMALL.subject(stage).trained.state_dict())
        trained(one, replace(loop, updates=updates), out=tmp_path / name, resume=(tmp_path / name).exists())
        ends.append(values(one))
    assert all(map(torch.equal, ends[0], ends[2]))
