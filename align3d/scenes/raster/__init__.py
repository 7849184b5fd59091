"""Rasteriser backends."""
