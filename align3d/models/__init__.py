"""Text-to-3D generators."""

MODELS = {
    "embedded": "align3d.models.embedded:Embedded",
}
