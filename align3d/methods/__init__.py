"""Alignment algorithms, one file each."""

METHODS = {
    "nabla": "align3d.methods.nabla:Nabla",
}
