"""align3d aligns 3D generators with 2D rewards."""

__version__ = "0.1.0"
