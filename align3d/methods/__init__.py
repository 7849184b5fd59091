"""Alignment algorithms, one file each."""

DISTILLATIONS = {  # of a scene, from a prior
    "sds": "align3d.methods.sds:SDS",
    "vsd": "align3d.methods.vsd:VSD",
    "bridge": "align3d.methods.bridge:Bridge",
    "nfsd": "align3d.methods.nfsd:NFSD",
    "dds": "align3d.methods.dds:DDS",
    "recon": "align3d.methods.recon:Recon",
}
METHODS = {  # all; those of the first rows train a generator
    "nabla": "align3d.methods.nabla:Nabla",
    "draft": "align3d.methods.draft:Draft",
    "refl": "align3d.methods.refl:ReFL",
    "ddpo": "align3d.methods.ddpo:DDPO",
    **DISTILLATIONS,
}
