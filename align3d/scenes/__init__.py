"""Cameras, scene representations, rasterisers and scene files."""
