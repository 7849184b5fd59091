"""Cameras, scene representations, rasterisers and scene files."""

SCENES = {
    "gaussians": "align3d.scenes.gaussians:Gaussians",
}
