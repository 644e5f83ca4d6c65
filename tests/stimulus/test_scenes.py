"""The built-in films: repeatable, bounded, without aliasing, and with a flow that is true."""

import numpy as np
import pytest

from flyjax.circuit.hexgrid import positions
from flyjax.stimulus import luminance, other_kind, scenes, textures
from flyjax.stimulus.scenes import NAMES, film
from flyjax.utils.errors import UserError


def lattice(extent):
    span = range(-extent, extent + 1)
    return np.array([(u, v) for u in span for v in span if abs(u + v) <= extent])


@pytest.mark.parametrize("name", NAMES)
def test_repeatable_and_a_longer_film_begins_with_the_shorter(name):
    columns = lattice(1)
    a = luminance(name, columns, 300, 0.02, "train", 3)
    assert a.shape == (300, 7) and a.dtype == np.float32
    assert a.min() >= 0 and a.max() <= 1
    np.testing.assert_array_equal(a, luminance(name, columns, 700, 0.02, "train", 3)[:300])
    assert np.abs(a - luminance(name, columns, 300, 0.02, "train", 4)).mean() > 0.05
    assert np.abs(a - luminance(name, columns, 300, 0.02, "test", 3)).mean() > 0.05


def test_splits_share_no_texture():
    tiles = [textures.texture("cloud", split, 0, k)[4] for split in ("train", "test") for k in range(8)]
    correlation = np.corrcoef([tile.ravel() for tile in tiles])
    assert np.abs(correlation - np.eye(16)).max() < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_near_natural(name):
    # DAVIS through this eye: mean near 0.4, contrast near 0.2, a temporal spectrum falling about as f^-2.
    x = luminance(name, lattice(2), 6000, 0.02)
    assert 0.3 < x.mean() < 0.55
    assert 0.15 < x.std() < 0.32
    pieces = (x - x.mean(0)).reshape(12, 500, -1)
    power = (np.abs(np.fft.rfft(pieces, axis=1)) ** 2).mean((0, 2))
    f = np.fft.rfftfreq(500, 0.02)
    slope = np.polyfit(np.log(f[5:150]), np.log(power[5:150]), 1)[0]
    assert -3 < slope < -1.2
    # Columns are not copies of one another: 19 columns carry at least 19 usable modes.
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert singular[-1] > 0.02 * singular[0]
    # Cuts: something jumps at least every two seconds, and never does the film stand still.
    step = np.abs(np.diff(x, axis=0)).mean(1)
    assert step.reshape(-1)[: 59 * 100].reshape(59, 100).max(1).min() > 0.03
    assert np.median(step) > 0.004


@pytest.mark.parametrize("name", NAMES)
def test_another_frame_interval_samples_the_same_film(name):
    columns = lattice(1)
    slow, fast = luminance(name, columns, 400, 0.02), luminance(name, columns, 800, 0.01)[::2]
    # Shots begin on a frame, so up to half a frame apart.
    assert np.median(np.abs(slow - fast)) < 0.02
    assert np.corrcoef(slow.ravel(), fast.ravel())[0, 1] > 0.97


def test_a_box_mean_attenuates_a_sine_by_its_sinc(monkeypatch):
    cycles = 0.25  # per column
    row = 0.5 + 0.4 * np.sin(2 * np.pi * cycles * np.arange(textures.SIZE) / textures.PIXELS)
    monkeypatch.setitem(textures._KINDS, "sine", lambda rng: np.tile(row, (textures.SIZE, 1)))
    stack = textures.texture("sine", "train", 0, 0)
    x = np.linspace(-30, 90, 500)[None, :]
    for width in (0.25, 0.5, 1.0, 2.0, 4.0):
        seen = textures.sample(stack, x, 0.3 * x, np.array([width]))
        truth = 0.5 + 0.4 * np.sinc(width * cycles) * np.sin(2 * np.pi * cycles * x)
        np.testing.assert_allclose(seen, truth, atol=0.02)  # linear interpolation between pixels
    between = textures.sample(stack, x, x, np.array([1.2]))
    truth = 0.5 + 0.4 * np.sinc(1.2 * cycles) * np.sin(2 * np.pi * cycles * x)
    np.testing.assert_allclose(between, truth, atol=0.03)


def test_edges_and_gratings_are_exact_box_means():
    rng = np.random.default_rng(0)
    phase = rng.uniform(-20, 20, 50)
    per_column = 2 * np.pi / 5.0
    fine = (np.arange(20_000) + 0.5) / 20_000 - 0.5
    brute = 0.5 + 0.5 * np.sign(np.sin(phase[:, None] + per_column * fine)).mean(1)
    np.testing.assert_allclose(scenes.square_wave(phase, per_column), brute, atol=1e-3)
    along = np.linspace(-8, 8, 4001)[None, :]
    stripes = scenes._stripes(np.random.default_rng(1), along, along.min() - 1, along.max() + 1, 1.0)
    # A box one column wide cannot change faster than the full contrast per column.
    assert np.abs(np.diff(stripes[0])).max() <= 16 / 4000 * 1.001
    assert stripes.min() >= -1e-9 and stripes.max() <= 1 + 1e-9 and stripes.std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_flow_moves_the_picture(name, monkeypatch):
    monkeypatch.setattr(scenes, "_expose", lambda rng, t, image: image)  # constant illumination
    # Brightness constancy, dL/dt + flow . grad L = 0, with gradients by finite differences.
    base, eps, dt = lattice(3).astype(float), 0.05, 0.002
    # (u, v) of a step to the right (x = v, y = u + v/2) and of a step up (y is down in the eye).
    right, up = np.array([-0.5, 1.0]) * eps, np.array([-1.0, 0.0]) * eps
    everything = np.concatenate([base - right, base + right, base - up, base + up, base])
    shown = film(name, everything, 4000, dt, "train", 1)
    n = len(base)
    left, right, down, up, here = (shown.luminance[:, k * n : (k + 1) * n].astype(float) for k in range(5))
    flow = shown.flow[:, 4 * n :]
    change = (here[2:] - here[:-2]) / (2 * dt)
    gradient = np.stack([right - left, up - down], -1) / (2 * eps)
    carried = -(flow * gradient).sum(-1)[1:-1]
    # Cuts jump, and where surfaces overlap within a column's box two motions are seen at once: most, not all.
    moving = np.abs(change) > 0.1
    error = np.abs(change - carried)[moving]
    assert moving.mean() > 0.3
    assert np.median(error / np.abs(change[moving])) < 0.1
    assert (error < 0.5 * np.abs(change[moving])).mean() > 0.75
    # The test can fail: the opposite flow, or the flow upside down, explains little.
    for wrong in (-1, np.array([1, -1])):
        other = -(wrong * flow * gradient).sum(-1)[1:-1][moving]
        assert np.median(np.abs(change[moving] - other) / np.abs(change[moving])) > 0.5


def test_names():
    assert other_kind("DAVIS") == "optical_flow" and other_kind("optical_flow") == "DAVIS"
    assert other_kind("scenes_texture") == "scenes_flow" and other_kind("scenes_flow") == "scenes_texture"
    assert other_kind("scenes_edges") == "scenes_texture"
    with pytest.raises(UserError, match="Did you mean 'scenes_texture'"):
        luminance("scene_texture", lattice(1), 10, 0.02)
    with pytest.raises(UserError, match="split"):
        luminance("scenes_flow", lattice(1), 10, 0.02, split="validation")
    with pytest.raises(UserError, match="n_frames"):
        luminance("scenes_flow", lattice(1), 0, 0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_eye_sees_the_box_means_of_the_camera_picture(name):
    columns, pixels = lattice(3), 5
    camera = scenes.picture(name, columns, 150, 0.02, pixels=pixels)
    x, y = positions(columns)
    row, col = (np.floor(a * pixels + n / 2).astype(int) for a, n in zip((y, x), camera.shape[1:]))
    box = np.arange(pixels) - pixels // 2
    boxes = camera[:, row[:, None, None] + box[:, None], col[:, None, None] + box]
    means = boxes.mean((2, 3))
    seen = film(name, columns, 150, 0.02).luminance
    # Soft edges of discs and boxes that turn with the surface are all that may differ.
    assert np.corrcoef(means.ravel(), seen.ravel())[0, 1] > 0.985
    assert np.abs(means - seen).mean() < 0.02
    assert boxes.std((2, 3)).mean() > 0.02  # sharper than the eye


def test_statistics_of_known_stimuli():
    from flyjax.stimulus.statistics import photographs, statistics, temporal_slope

    rng = np.random.default_rng(0)
    f = np.fft.rfftfreq(2000, 0.02)[:, None]
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal((2000, 40)), axis=0) / np.maximum(f, 0.05), axis=0)
    assert abs(temporal_slope(noise, 0.02) + 2) < 0.15
    assert abs(temporal_slope(rng.standard_normal((2000, 40)), 0.02)) < 0.15
    assert temporal_slope(np.full((2000, 4), 0.5), 0.02) is None and temporal_slope(noise[:20], 0.02) is None
    halves = np.tile([0.2, 0.6], (100, 5))
    assert np.allclose([statistics(halves)[k] for k in ("mean", "contrast", "frame_contrast")], [0.4, 0.2, 0.2])
    seen = photographs(lattice(2))
    assert len(seen) > 10 and 0.2 < seen.mean() < 0.6
