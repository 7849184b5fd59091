"""Alignment algorithms, one file each."""

METHODS = {
    "nabla": "align3d.methods.nabla:Nabla",
    "draft": "align3d.methods.draft:Draft",
    "refl": "align3d.methods.refl:ReFL",
    "ddpo": "align3d.methods.ddpo:DDPO",
    "sds": "align3d.methods.sds:SDS",
}
