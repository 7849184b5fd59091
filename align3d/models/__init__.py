"""Text-to-3D generators."""

MODELS = {
    "embedded": "align3d.models.embedded:Embedded",
    "diffsplat-pas": "align3d.models.published:DiffSplatPAS",
    "diffsplat-sd15": "align3d.models.published:DiffSplatSD15",
    "diffsplat-sd35m": "align3d.models.published:DiffSplatSD35m",
}
