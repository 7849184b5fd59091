"""Which of the fourteen colour words a picture shows; the words and their paints are those of the procedural set."""

from __future__ import annotations

import numpy as np
from objects.palette import COLORS

WORDS = list(COLORS)
LIGHT = np.array([0.34, 0.84, 0.42], np.float32)  # as in raster.cpp


def oklch(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lightness, chroma and hue in degrees of sRGB colours in 0..1 (Ottosson 2020)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    to_lab = [
        [0.2104543, 0.7936178, -0.0040720],
        [1.9779985, -2.4285922, 0.4505937],
        [0.0259040, 0.7827718, -0.8086758],
    ]
    lab = np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return lab[..., 0], np.hypot(lab[..., 1], lab[..., 2]), hue


def word_of(rgb: np.ndarray) -> np.ndarray:
    """Index into WORDS of each colour; rules in OKLCH, later ones win. "gold" is never guessed.

    Args:
        rgb: (..., 3) sRGB in 0..1, light divided out.
    """
    L, C, h = oklch(np.asarray(rgb, np.float64))
    warm = (h >= 38) & (h < 100)
    dull = np.where(L > 0.9, 0.018, np.where((h > 100) & (h < 300), 0.036, 0.025))
    neutral = (dull > C) | ((L < 0.30) & (C < 0.05))
    rules = (
        ("red", (h < 38) | (h >= 355)),
        ("orange", (h >= 38) & (h < 85)),
        ("yellow", (h >= 85) & (h < 117)),
        ("green", (h >= 117) & (h < 182)),
        ("cyan", (h >= 182) & (h < 222)),
        ("blue", (h >= 222) & (h < 290)),
        ("blue", (h >= 182) & (h < 222) & ((L < 0.60) | (C < 0.07))),
        ("purple", (h >= 290) & (h < 330)),
        ("pink", (h >= 330) & (h < 355)),
        ("pink", ((h < 22) | (h >= 355)) & (L > 0.70)),
        ("purple", ((h >= 330) | (h < 8)) & (C < 0.10) & (L < 0.55)),
        ("brown", warm & ((L < 0.60) | ((L < 0.66) & (C < 0.15)) | ((L < 0.71) & (C < 0.11)))),
        ("brown", (h >= 20) & (h < 38) & (((C < 0.115) & (L < 0.62)) | ((h >= 30) & (L < 0.42)))),
        ("brown", (h >= 85) & (h < 112) & (L < 0.62)),
        ("green", (h >= 100) & (h < 117) & (L < 0.62) & (C >= 0.05)),
        ("beige", (h >= 40) & (h < 112) & (L >= 0.70) & (C < 0.085)),
        ("beige", (h >= 55) & (h < 95) & (L >= 0.71) & (C < 0.115)),
        ("beige", (h >= 100) & (h < 117) & (L >= 0.55) & (L < 0.70) & (C < 0.06)),
        ("gray", neutral),
        ("black", (neutral & (L < 0.38)) | (L < 0.17)),
        ("white", neutral & (L >= 0.835)),
    )
    out = np.zeros(L.shape, np.int64)
    for word, where in rules:
        out[where] = WORDS.index(word)
    return out


def shares(rgb: np.ndarray, normal: np.ndarray, mask: np.ndarray, to_world: np.ndarray) -> list[tuple[str, float]]:
    """Colour words of a record's canonical views with their share of what is seen, most first, from 4 %.

    Args:
        rgb: (V, H, W, 3) uint8.
        normal: (V, H, W, 3) int8, camera frame.
        mask: (V, H, W), 0 = nothing.
        to_world: (V, 3, 3) rotations, camera to world.
    """
    world = np.einsum("vij,vhwj->vhwi", to_world, normal.astype(np.float32) / 127)[mask > 0]
    if not len(world):
        return []
    light = 0.64 + 0.17 * world[:, 1] + 0.28 * np.maximum(0, world @ LIGHT)
    flat = np.minimum(1, rgb[mask > 0] / 255 / light[:, None])
    share = np.bincount(word_of(flat), minlength=len(WORDS)) / len(flat)
    return [(WORDS[k], float(share[k])) for k in np.argsort(-share, kind="stable") if share[k] >= 0.04]
