"""Colours by name, and those of details that nobody names."""

from __future__ import annotations

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.09, 0.09),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.12, 0.63, 0.17),
    "blue": (0.10, 0.27, 0.87),
    "purple": (0.50, 0.14, 0.72),
    "pink": (0.98, 0.48, 0.68),
    "brown": (0.45, 0.25, 0.11),
    "black": (0.09, 0.09, 0.10),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.52, 0.53, 0.55),
    "cyan": (0.08, 0.76, 0.82),
    "gold": (0.82, 0.64, 0.16),
    "beige": (0.89, 0.79, 0.60),
}

# Colours of details that captions do not name.
DARK = np.array((0.10, 0.10, 0.11))
WHITE = np.array((0.96, 0.96, 0.95))
GLASS = np.array((0.50, 0.78, 0.95))
WINDOW = np.array((0.24, 0.34, 0.44))
WOOD = np.array((0.45, 0.27, 0.13))
STEEL = np.array((0.62, 0.64, 0.67))
LEAF = np.array((0.15, 0.58, 0.16))
FLAME = np.array((1.0, 0.70, 0.10))
ORANGE = np.array((0.98, 0.52, 0.07))
CREAM = np.array((0.97, 0.92, 0.80))


def jitter(rng: np.random.Generator, name: str) -> np.ndarray:
    """A shade of the named colour: (3,) in [0, 1], brightness within 10 % and each channel within 0.035."""
    shade = np.array(COLORS[name]) * rng.uniform(0.9, 1.05) + rng.uniform(-0.035, 0.035, 3)
    return np.clip(shade, 0.0, 1.0)
