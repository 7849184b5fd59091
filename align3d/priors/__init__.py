"""Frozen diffusion models of pictures that scenes are distilled from."""

PRIORS = {
    "embedded": "align3d.priors.embedded:Embedded",
}
