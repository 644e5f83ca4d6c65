"""The colours of the classes stay apart for readers with any colour vision, on light and on dark pages."""

import itertools
import re

import numpy as np
import pytest

from flyjax.report.html import TEMPLATES

#: Machado, Oliveira & Fernandes (2009), severity 1.
VISION = {
    "full": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    f = np.cbrt(np.maximum(XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089], 1e-6))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_classes_differ(vision):
    css = (TEMPLATES / "report.css").read_text()
    themes = list(zip(*(re.findall(rf"--{name}: (#\w{{6}})", css) for name in ("ok", "mid", "bad")), strict=True))
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        for a, b in itertools.combinations(theme, 2):
            seen = [lab(np.array(VISION[vision]) @ linear(colour)) for colour in (a, b)]
            assert np.linalg.norm(seen[0] - seen[1]) > 20, (theme, a, b)
