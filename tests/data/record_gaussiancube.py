"""Writes gaussiancube.safetensors: numbers of the released code of GaussianCube, for the tests to agree with.

    git clone https://github.com/GaussianCube/GaussianCube released && git -C released checkout COMMIT
    python tests/data/record_gaussiancube.py released

Only its network, its solver and its reading of cubes are run, on a CPU; of what else it imports, tqdm is all it needs.
What each name is: README-gaussiancube.md.
"""

import argparse
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
COMMIT = "2367efd7a9d15e16a25f0826d056af30eb43f87e"
COMMON = {  # as its configurations, but for the widths
    **{"image_size": 8, "model_channels": 32, "num_res_blocks": 1, "channel_mult": "1,4", "dims": 3},
    **{"attention_resolutions": "4", "num_heads": 1, "num_head_channels": 64, "num_heads_upsample": -1},
    **{"use_scale_shift_norm": True, "dropout": 0.0, "resblock_updown": True, "in_channels": 14, "out_channels": 28},
    **{"activation": "silu", "disable_self_attentions": False, "att_pool_heads": 64, "encoder_dim": 128},
    "precision": "32",
}
KINDS = {
    "text": {"encoder_channels": 64},
    "class": {"encoder_channels": None, "num_classes": 5},
    "nothing": {"encoder_channels": None, "unconditional_gen": True},
}
METHODS = {"text": ("adaptive", 2), "class": ("multistep", 2), "nothing": ("multistep", 3)}


@contextmanager
def in_float64():
    """Without the roundings to float32 that it has on the way, but for the waves of a label."""
    from model import unet

    torch.set_default_dtype(torch.float64)
    waves = unet.timestep_embedding

    def single(labels, width, dtype):
        return waves(labels.to(torch.float32), width, dtype=torch.float32).to(dtype)

    same = mock.patch.object(torch.Tensor, "float", lambda tensor: tensor)
    with same, mock.patch.object(unet, "timestep_embedding", single):
        yield
    torch.set_default_dtype(torch.float32)


def noise_levels():
    """The discrete schedule of its inference script, in float64."""
    from model.dpmsolver import NoiseScheduleVP
    from model.gaussian_diffusion import get_named_beta_schedule

    betas = torch.from_numpy(get_named_beta_schedule("cosine", 1000, 1e-4, 0.02))
    return NoiseScheduleVP(schedule="discrete", betas=betas, dtype=torch.float64)


def solved(network, noise, method, order, steps, **guidance):
    """Its inference script's sample of one network, and how often it was asked for a prediction."""
    from model.dpmsolver import DPM_Solver, model_wrapper

    asked = []

    def counted(x, labels, **condition):
        asked.append(len(x))
        return network(x, labels, **condition)

    given = guidance or {"guidance_type": "uncond"}
    predict = model_wrapper(counted, noise_levels(), model_type="x_start", **given)
    solver = DPM_Solver(predict, noise_levels(), algorithm_type="dpmsolver++")
    how = {"steps": steps, "order": order, "skip_type": "time_uniform", "method": method}
    return solver.sample(x=noise, t_start=1.0, t_end=1 / 1000, **how), torch.tensor(len(asked))


def networks(tiny):
    """What its networks make of two cubes, in float32, and its solver of one noise with them, in float64."""
    from model.unet import UNetModel

    x, text, noise = tiny.inputs()
    asked = {"text": {"cond_text": text}, "class": {"class_labels": torch.tensor([1, 5])}, "nothing": {}}
    null = {"cond_text": torch.zeros(1, 77, 128), "class_labels": torch.tensor([5])}
    found = {}
    for kind, more in KINDS.items():
        network = UNetModel(**COMMON, **more).eval()
        network.load_state_dict(tiny.network(tiny.KINDS[kind]).state_dict(), strict=True)
        found[f"network_{kind}"] = network(x, torch.tensor([3.5, 918.0]), **asked[kind])[:, :14]
        guidance = {}
        if asked[kind]:
            one = {name: value[:1] for name, value in asked[kind].items()}
            guidance = {"guidance_type": "classifier-free", "guidance_scale": tiny.GUIDANCE[kind], "condition": one}
            guidance["unconditional_condition"] = {name: null[name] for name in one}
        network.double().dtype = torch.float64
        with in_float64():
            sample, calls = solved(network, noise.double(), *METHODS[kind], 12, **guidance)
        found |= {f"sample_{kind}": sample, f"asked_{kind}": calls}
    return found


def solvers(tiny):
    """Its solver in float64 throughout, on clean data that are given by a formula."""
    found, noise = {}, tiny.jumpy_noise()
    for order in (2, 3):
        for steps in (5, 12):
            path, asked = solved(tiny.jumpy, noise, "multistep", order, steps)
            found |= {f"path_{order}_{steps}": path, f"asked_{order}_{steps}": asked}
    rows = [solved(tiny.jumpy, row[None], "adaptive", 2, 1) for row in noise]
    found["path_adaptive"] = torch.cat([path for path, _ in rows])
    return found | {"asked_adaptive": torch.stack([asked for _, asked in rows])}


def gaussians(tiny):
    """Its reading of a cube, values far beyond the clamps among them."""
    from gaussian_renderer import parse_volume_data

    x, (mean, std) = tiny.inputs()[0][0], (value[:, :4, :6].permute(3, 0, 1, 2) for value in tiny.norms())
    axes = [torch.linspace(-0.45, 0.45, n, dtype=torch.float64) for n in x.shape[1:]]
    voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2).float()
    return {f"parsed_{name}": value for name, value in parse_volume_data(tiny.spread(x) * std + mean, voxels).items()}


def main():
    """Run it and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("released", type=Path, help=f"folder of the released code, at commit {COMMIT}")
    parser.add_argument("--out", type=Path, default=HERE / "gaussiancube.safetensors")
    args = parser.parse_args()
    rasteriser = types.ModuleType("diff_gaussian_rasterization")  # imported, never called
    rasteriser.GaussianRasterizationSettings = rasteriser.GaussianRasterizer = None
    sys.modules[rasteriser.__name__] = rasteriser
    sys.path[:0] = [str(args.released), str(HERE.parent)]
    import tiny_gaussiancube as tiny

    with torch.no_grad():
        found = networks(tiny) | gaussians(tiny)
        with in_float64():
            found |= solvers(tiny)
            levels = noise_levels()
    found |= {"levels": torch.tensor(levels.total_N), "log_alpha": levels.log_alpha_array[0, ::90]}
    for name, value in found.items():
        shown = value.tolist() if value.ndim == 0 or name.startswith("asked") else f"deviation {value.std():.3f}"
        print(name, list(value.shape), shown)
    save_file({name: value.contiguous() for name, value in found.items()}, args.out)


if __name__ == "__main__":
    main()
