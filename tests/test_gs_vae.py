"""The GS-VAE: published names, both decoders against their definition and the released code, chunks, recomputation."""

import functools

import pytest
import torch
import torch.nn.functional as F
from tiny_published import FAMILIES, tiny_gs_vae, write_gs_vae

B, V, h, w = 2, 3, 2, 3


@functools.cache
def weights(family):
    return tiny_gs_vae(family).state_dict()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=["full", "tiny"])
def decoder(request):
    return request.param


def codec_of(family, **options):
    from align3d.models.nets.gs_vae import GSVAE

    with torch.device("meta"):
        codec = GSVAE(**FAMILIES[family].gs_vae | options)
    codec.load_state_dict(weights(family), assign=True)
    return codec.requires_grad_(False).eval()


def inputs(family):
    """Latents, maps, and weights of a loss on maps."""
    rng = torch.Generator().manual_seed(8)
    z = torch.randn(B, V, FAMILIES[family].gs_vae.get("latent_channels", 4), h, w, generator=rng)
    weight, maps = (torch.randn(B, V, 12, 8 * h, 8 * w, generator=rng) for _ in range(2))
    return z, maps.clamp(-1, 1), weight


def run(function, x, weight):
    """Output and gradient."""
    x = x.clone().requires_grad_()
    out = function(x)
    (out * weight).sum().backward()
    return out.detach(), x.grad


def close(ours, true, tolerance=5e-5):
    return bool((ours - true).abs().max() <= tolerance * true.abs().max())


def slow(codec, z, scaling, shift):
    """Both decoders from their definition, one row after the other."""
    rows = []
    for row in z.flatten(0, 1).split(1):
        if codec.decoder == "full":
            row = row / scaling + shift
        if codec.vae.post_quant_conv is not None:
            row = F.conv2d(row, codec.vae.post_quant_conv.weight, codec.vae.post_quant_conv.bias)
        if codec.decoder == "full":
            rows.append(codec.vae.decoder(row))
            continue
        row = 3 * torch.tanh(row / 3)
        for layer in codec.tiny_decoder.layers:
            row = layer(row)
        rows.append(2 * row - 1)
    return torch.cat(rows).unflatten(0, z.shape[:2])


def test_decoders_are_what_they_say(family, decoder):
    z, _, weight = inputs(family)
    codec = codec_of(family, decoder=decoder)
    scaling, shift = {"pas": (0.13025, 0), "sd15": (0.18215, 0), "sd35m": (1.5305, 0.0609)}[family]
    out, grad = run(codec.decode, z, weight)
    true, true_grad = run(lambda leaf: slow(codec, leaf, scaling, shift), z, weight)
    assert out.shape == (B, V, 12, 8 * h, 8 * w)
    assert close(out, true) and close(grad, true_grad)
    assert out.abs().max() > 1  # not clamped
    assert grad.isfinite().all() and (grad.flatten(2).norm(dim=2) > 0.1).all()


RELEASED = {  # (clamped maps or latents)[:, -1, 1, -1, :2], norms by object; DiffSplat, commit a99d757
    ("pas", "full"): ([0.17756, 0.30836, 0.14101, 0.31101], [67.3417, 68.519]),
    ("pas", "tiny"): ([-1.0, -1.0, -1.0, -1.0], [105.8394, 105.4159]),
    ("pas", "encode"): ([-0.08921, -0.04412, -0.0718, -0.08952], [0.6087, 0.6208]),
    ("sd15", "full"): ([0.13116, 0.27143, 0.07798, 0.24511], [67.0445, 68.157]),
    ("sd15", "tiny"): ([-1.0, -1.0, -1.0, -1.0], [105.8394, 105.4159]),
    ("sd15", "encode"): ([-0.12475, -0.0617, -0.10042, -0.1252], [0.8513, 0.8682]),
    ("sd35m", "full"): ([-0.2372, 0.14651, -0.41768, -0.20197], [71.4531, 71.6727]),
    ("sd35m", "tiny"): ([-0.03408, 0.00658, 0.02073, -0.15385], [94.1453, 94.4327]),
    ("sd35m", "encode"): ([-1.66624, -1.32232, -1.4308, -1.9057], [13.3759, 13.1876]),
}


@pytest.mark.parametrize("what", ["full", "tiny", "encode"])
def test_numbers_of_the_released_code(family, what):
    z, maps, _ = inputs(family)
    codec = codec_of(family, decoder="tiny" if what == "tiny" else "full")
    out = codec.encode(maps) if what == "encode" else codec.decode(z).clamp(-1, 1)
    values, norms = (torch.tensor(true) for true in RELEASED[family, what])
    assert torch.allclose(out[:, -1, 1, -1, :2].flatten(), values, rtol=1e-4, atol=1e-4)
    assert torch.allclose(out.flatten(1).norm(dim=1), norms, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_and_recomputation_change_nothing(decoder, chunk):
    z, maps, weight = inputs("pas")
    true, true_grad = run(codec_of("pas", decoder=decoder).decode, z, weight)
    for recompute, calls in ((False, 1), (True, 2)):
        codec = codec_of("pas", decoder=decoder, chunk=chunk, recompute=recompute)
        seen = []
        network = codec.vae.decoder if decoder == "full" else codec.tiny_decoder
        network.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        out, grad = run(codec.decode, z, weight)
        assert close(out, true) and close(grad, true_grad)
        assert sorted(seen) == sorted(([chunk] * (6 // chunk) + [6 % chunk] * (6 % chunk > 0)) * calls)
    assert close(codec.encode(maps), codec_of("pas").encode(maps))


def test_nothing_is_recomputed_without_gradient():
    z, _, _ = inputs("pas")
    codec = codec_of("pas", chunk=2, recompute=True)
    seen = []
    codec.vae.decoder.register_forward_pre_hook(lambda *_: seen.append(1))
    assert not codec.decode(z).requires_grad and len(seen) == 3


def test_latents_are_the_mode_with_gradient_to_every_map(family):
    _, maps, _ = inputs(family)
    codec = codec_of(family)
    weight = torch.randn(inputs(family)[0].shape, generator=torch.Generator().manual_seed(1))
    out, grad = run(codec.encode, maps, weight)
    moments = codec.vae.encoder(maps.flatten(0, 1))
    moments = moments if codec.vae.quant_conv is None else codec.vae.quant_conv(moments)
    mean = moments.chunk(2, 1)[0].unflatten(0, (B, V))
    assert close(out, (mean - codec.shift) * codec.scaling)
    assert grad.isfinite().all() and (grad.flatten(2).norm(dim=2) > 0).all()


def test_missing_scaling_is_one_and_missing_shift_zero():
    z, maps, _ = inputs("sd35m")
    plain, unit = codec_of("sd35m", scaling=None, shift=None), codec_of("sd35m", scaling=1.0, shift=0.0)
    other = codec_of("sd35m", shift=None)
    assert torch.equal(plain.decode(z), unit.decode(z)) and torch.equal(plain.encode(maps), unit.encode(maps))
    assert close(other.decode(1.5305 * z), plain.decode(z))


def test_bfloat16_weights_take_and_give_float32(decoder):
    z, maps, _ = inputs("sd15")
    exact, coarse = (codec_of("sd15", decoder=decoder) for _ in range(2))
    coarse.bfloat16()
    for ours, true in ((coarse.decode(z), exact.decode(z)), (coarse.encode(maps), exact.encode(maps))):
        assert ours.dtype == torch.float32 and not torch.equal(ours, true)
        assert close(ours, true, 0.1)


def test_names_and_shapes_at_full_size():
    from align3d.models.nets.gs_vae import GSVAE

    with torch.device("meta"):
        one, sd3 = GSVAE(), GSVAE(latent_channels=16, quant_conv=False)
    shapes = {name: list(tensor.shape) for name, tensor in one.state_dict().items()}
    assert shapes["vae.encoder.conv_in.weight"] == [128, 12, 3, 3]
    assert shapes["vae.decoder.conv_out.weight"] == [12, 128, 3, 3]
    assert shapes["vae.quant_conv.weight"] == [8, 8, 1, 1] and shapes["vae.post_quant_conv.weight"] == [4, 4, 1, 1]
    assert shapes["tiny_decoder.layers.18.weight"] == [12, 64, 3, 3]
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("tiny_decoder.layers.")}
    assert sorted(layers) == [0, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18]
    assert {name.split(".")[0] for name in shapes} == {"vae", "tiny_decoder"}
    assert sum(p.numel() for p in one.tiny_decoder.parameters()) == 1_227_724
    names = sd3.state_dict()
    assert names["vae.decoder.conv_in.weight"].shape == (512, 16, 3, 3)
    assert not [name for name in names if "quant_conv" in name]


def test_sizes_come_from_the_file(family, tmp_path):
    from safetensors.torch import load_file

    from align3d.models.nets.gs_vae import gs_vae_config

    tensors = load_file(write_gs_vae(tmp_path / "x", family) / "model.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(family).items())
    config = gs_vae_config({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    codec = codec_of(family, **config)
    assert codec.state_dict().keys() == tensors.keys()
    bare = gs_vae_config({name: tuple(t.shape) for name, t in tensors.items() if name.startswith("vae.")})
    assert bare == config | {"tiny_channels": 0}
    for broken in ({}, {"vae.decoder.conv_in.weight": (4,)}, {"transformer_blocks.0.norm1.weight": (4,)}):
        with pytest.raises(ValueError, match="no weights of a GS-VAE"):
            gs_vae_config(broken)


def test_a_decoder_that_is_not_there_is_refused():
    from align3d.models.nets.gs_vae import GSVAE

    with torch.device("meta"):
        assert GSVAE(tiny_channels=0).tiny_decoder is None
        with pytest.raises(ValueError, match="has no tiny decoder"):
            GSVAE(tiny_channels=0, decoder="tiny")
