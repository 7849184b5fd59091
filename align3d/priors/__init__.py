"""Frozen diffusion models of pictures that scenes are distilled from."""

PRIORS = {
    "embedded": "align3d.priors.embedded:Embedded",
    "stable-diffusion": "align3d.priors.stable_diffusion:StableDiffusion",
    "stable-diffusion-1.5": "align3d.priors.stable_diffusion:StableDiffusion15",
    "mvdream": "align3d.priors.mvdream:MVDream",
    "mvdream-1.5": "align3d.priors.mvdream:MVDream15",
}
