"""The palette is told apart by all eyes, on light and on dark."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

STYLE = (Path(__file__).resolve().parents[2] / "edgeft" / "report" / "style.css").read_text()
# Machado, Oliveira, Fernandes 2009, severity 1: on linear RGB
SIGHTS = {"normal": np.eye(3),
          "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                              [-0.003882, -0.048116, 1.051998]]),
          "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
          "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                              [0.004733, 0.691367, 0.303900]])}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
LEAST_APART, LEAST_CONTRAST = 25, 3  # in CIELAB; WCAG's for what is no text


def palettes() -> dict[str, tuple[str, list[str]]]:
    """Light, dark and printed: (ground, the colours of runs)."""
    grounds = re.findall(r"--ground: (#\w{6})", STYLE)
    colours = re.findall(r"--c\d: (#\w{6})", STYLE)
    size = len(colours) // len(grounds)
    return {name: (ground, colours[index * size : (index + 1) * size])
            for index, (name, ground) in enumerate(zip(("light", "dark", "printed"), grounds, strict=True))}


def linear(colour: str) -> np.ndarray:
    part = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    white = XYZ.sum(1)
    share = XYZ @ np.clip(rgb, 0, 1) / white
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(colours: list[str], sight: str) -> float:
    """The smallest distance of two colours as one of these eyes sees them."""
    seen = [lab(SIGHTS[sight] @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(one - other)) for one, other in combinations(seen, 2))


def contrast(one: str, other: str) -> float:
    dark, light = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("name", ["light", "dark", "printed"])
def test_colours_are_apart(name: str, sight: str) -> None:
    ground, colours = palettes()[name]
    assert len(colours) == 6
    assert apart(colours, sight) >= LEAST_APART
    assert min(contrast(colour, ground) for colour in colours) >= LEAST_CONTRAST


def test_red_and_green_are_not_apart_for_all_eyes() -> None:
    confused = ["#d55e00", "#8a6d00"]
    assert apart(confused, "normal") > LEAST_APART > apart(confused, "protan")
    assert contrast("#ffffff", "#ffff00") < LEAST_CONTRAST
