"""Text-to-3D generators."""

MODELS = {
    "embedded": "align3d.models.embedded:Embedded",
    "diffsplat-pas": "align3d.models.published:DiffSplatPAS",
    "diffsplat-sd15": "align3d.models.published:DiffSplatSD15",
    "diffsplat-sd35m": "align3d.models.published:DiffSplatSD35m",
    "gaussiancube": "align3d.models.gaussiancube_files:Objaverse",
    "gaussiancube-v1.0": "align3d.models.gaussiancube_files:Objaverse10",
    "gaussiancube-omniobject3d": "align3d.models.gaussiancube_files:OmniObject3D",
    "gaussiancube-shapenet-car": "align3d.models.gaussiancube_files:ShapeNetCar",
    "gaussiancube-shapenet-chair": "align3d.models.gaussiancube_files:ShapeNetChair",
}
