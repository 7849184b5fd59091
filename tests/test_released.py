"""Agreement with the released code, on numbers that it recorded: tests/data/released/README.md says which."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align3d.diffusion.schedule import DiscreteVP
from align3d.diffusion.transition import score_scale
from align3d.models.diffsplat import DiffSplat, TextCond, plucker_rays_published
from align3d.models.lora import Adapter
from align3d.models.published import LAYERS, VIEWS
from align3d.models.splat_maps import SplatMaps
from align3d.models.text import Text
from align3d.scenes.cameras import canonical
from align3d.weights import load_part

HERE = Path(__file__).parent / "data" / "released"


@pytest.fixture(scope="module")
def numbers():
    return load_file(HERE / "transitions.safetensors")


@pytest.fixture(scope="module")
def model():
    """The denoiser of that checkpoint with its adapter, and no codec."""
    from diffusers import PixArtTransformer2DModel

    from align3d.models.nets.denoisers import PixArt, stock_config

    network = load_part(PixArtTransformer2DModel, HERE / "transformer_ema", torch.float32, stock_config).eval()
    schedule = DiscreteVP()
    denoiser = PixArt(network, VIEWS, schedule.index)
    adapter = Adapter(network, 4, 8.0, LAYERS["all"])
    adapter.load(HERE / "adapter")
    cameras = canonical(1, 256, 256)
    rays = plucker_rays_published(cameras, 8, 8)
    parts = {"codec": torch.nn.Identity(), "text": list, "schedule": schedule, "cameras": cameras, "maps": SplatMaps()}
    shape = {"latent_shape": (VIEWS, 4, 8, 8), "plucker": rays, "prediction": "epsilon"}
    return DiffSplat(denoiser=denoiser, adapter=adapter, steps=20, guidance=5.0, **parts, **shape)


def apart(a, b):
    """The relative distance of two tensors."""
    return float((a - b).norm() / b.norm())


def eight_channels(model, x, t, text, empty):
    """The network's output with guidance, the channels of the variance included, which ours leaves out."""
    both = Text.cat([text, empty])
    rows = torch.cat([torch.cat([x, x]), model.plucker.expand(2, -1, -1, -1, -1)], 2).flatten(0, 1)
    labels = model.schedule.index(torch.cat([t, t]))
    out = model.denoiser.rows(rows, labels, both.states, both).unflatten(0, (2, VIEWS))
    return out[1:] + 5.0 * (out[:1] - out[1:])


@pytest.mark.parametrize("step", [4, 17])
def test_a_transition_is_that_of_the_released_trainer(model, numbers, step):
    text, empty = (Text(numbers[f"{p}text"], numbers[f"{p}keep"].float()) for p in ("", "negative_"))
    cond, times = TextCond(text, empty), model.schedule.times(20, torch.float64)
    t, s, x = times[step : step + 1], times[step + 1 : step + 2], numbers[f"{step}.x"]
    assert int(model.schedule.index(t)) == int(numbers[f"{step}.t"])
    with model.reference():
        eps_ref = model.predict(x, t.float(), cond)
    eps = model.predict(x, t.float(), cond)
    k = score_scale(model.schedule, t, s, 1.0).float()
    assert apart(-k * (eps - eps_ref), numbers[f"{step}.score"] - numbers[f"{step}.score_ref"]) < 1e-5

    loss = (k * (eps - eps_ref) + numbers[f"{step}.g"]).square().mean()
    assert float(loss) == pytest.approx(float(numbers[f"{step}.loss_forward"]), rel=2e-5)
    drift = (eight_channels(model, x, t.float(), text, empty) - numbers[f"{step}.stored_output"]).square().mean()
    assert float(drift) == pytest.approx(float(numbers[f"{step}.unetreg"]), rel=2e-5)

    model.network.zero_grad()
    (loss + 30 * drift).backward()
    named = {name.replace(".default.weight", ""): p for name, p in model.adapter.named_parameters()}
    wanted = {n.partition(".grad.")[2]: g for n, g in numbers.items() if n.startswith(f"{step}.grad.")}
    assert len(wanted) == 8 and all(apart(named[name].grad, grad) < 5e-5 for name, grad in wanted.items())
