"""Procedural objects with captions: categories of signed-distance primitives, and the tracer that draws them."""
