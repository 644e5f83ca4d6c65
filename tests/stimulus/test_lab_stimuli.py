"""Laboratory stimuli against what defines them, and mixtures against their weights."""

import numpy as np
import pytest

from flyjax.stimulus import flow, luminance, other_kind
from flyjax.stimulus.lab_stimuli import _TAPS, NAMES, m_sequence
from flyjax.stimulus.registry import parts_of, schedule
from flyjax.utils.errors import UserError


def lattice(extent):
    span = range(-extent, extent + 1)
    return np.array([(u, v) for u in span for v in span if abs(u + v) <= extent])


@pytest.mark.parametrize("name", [*NAMES, "scenes_edges:0.5+flashes:0.3+blank:0.2"])
def test_repeatable_bounded_and_prefix_stable(name):
    columns = lattice(1)
    a = luminance(name, columns, 400, 0.02, "train", 1)
    assert a.dtype == np.float32 and a.shape == (400, 7) and a.min() >= 0 and a.max() <= 1
    np.testing.assert_array_equal(a, luminance(name, columns, 900, 0.02, "train", 1)[:400])
    assert flow(name, columns, 400, 0.02, "train", 1).shape == (400, 7, 2)
    for other in (("train", 2), ("test", 1)):
        different = np.abs(a - luminance(name, columns, 400, 0.02, *other)).max()
        assert different == 0 if name == "blank" else different > 0.1


@pytest.mark.parametrize("split", ["train", "test"])
def test_maximum_length_sequences(split):
    bits = m_sequence(_TAPS[split]).astype(int)
    n = _TAPS[split][0]
    assert len(bits) == 2**n - 1 and bits.sum() == 2 ** (n - 1)
    # What defines them: every n-bit word but zero once, and a two-valued autocorrelation.
    words = sum(np.roll(bits, -k) << k for k in range(n))
    assert np.unique(words).size == len(bits) and words.min() > 0
    spectrum = np.abs(np.fft.fft(2 * bits - 1)) ** 2
    autocorrelation = np.fft.ifft(spectrum).real.round(6)
    assert autocorrelation[0] == len(bits) and set(autocorrelation[1:]) == {-1.0}


def test_tiles_share_a_sequence_and_others_are_uncorrelated():
    columns = lattice(2)
    x = luminance("m_sequence", columns, 8000, 0.04)
    tile = np.unique(columns // 2, axis=0, return_inverse=True)[1].reshape(-1)
    r = np.corrcoef(x.T)
    assert np.allclose(r[tile[:, None] == tile], 1) and np.abs(r[tile[:, None] != tile]).max() < 0.05
    np.testing.assert_array_equal(np.unique(x), np.float32([0.1, 0.9]))


def test_white_noise_is_white():
    x = luminance("white_noise", lattice(1), 20_000, 0.02)
    np.testing.assert_array_equal(x[::2], x[1::2])  # held for 40 ms
    y = x[::2] - 0.5
    assert abs(y.mean()) < 0.01 and abs(y.std() - 1 / np.sqrt(12)) < 0.005
    r = np.corrcoef(np.concatenate([y[1:], y[:-1]], 1).T)
    assert np.abs(r - np.eye(14)).max() < 0.05


def test_flashes_start_grey_and_are_centred_discs():
    columns = lattice(4)
    x = luminance("flashes", columns, 3000, 0.02)
    radius = np.hypot(columns[:, 1], columns[:, 0] + columns[:, 1] / 2)
    shown = np.abs(x - 0.5) > 1e-6
    assert 0.15 < (~shown.any(1)).mean() < 0.4
    order = np.argsort(radius)
    height = np.abs(x - 0.5)[:, order]
    assert (np.diff(height, axis=1) < 1e-6).all()  # never brighter outwards
    signs = np.sign(x - 0.5)[shown.any(1)][:, order[0]]
    assert 0.3 < (signs > 0).mean() < 0.7
    assert 0.1 < shown.all(1).mean() < 0.5  # full fields
    assert np.abs(flow("flashes", columns, 100, 0.02)).max() == 0


@pytest.mark.parametrize("name", ["moving_edges", "gratings"])
def test_what_moves_moves_with_its_flow(name):
    base, eps, dt = lattice(2).astype(float), 0.05, 0.002
    right, up = np.array([-0.5, 1.0]) * eps, np.array([-1.0, 0.0]) * eps
    everything = np.concatenate([base - right, base + right, base - up, base + up, base])
    x = luminance(name, everything, 6000, dt).astype(float).reshape(6000, 5, -1)
    v = flow(name, everything, 6000, dt).reshape(6000, 5, len(base), 2)[1:-1, 4]
    change = (x[2:, 4] - x[:-2, 4]) / (2 * dt)
    gradient = np.stack([x[:, 1] - x[:, 0], x[:, 3] - x[:, 2]], -1)[1:-1] / (2 * eps)
    carried = -(v * gradient).sum(-1)
    moving = np.abs(change) > 0.1
    assert moving.mean() > 0.02
    assert np.median(np.abs(change - carried)[moving] / np.abs(change[moving])) < 0.05
    speed = np.hypot(*v.reshape(-1, 2).T)
    assert speed.min() >= 2.4 - 1e-3 and speed.max() <= 25 + 1e-3
    angle = np.arctan2(v[..., 1], v[..., 0]) / (np.pi / 6)
    np.testing.assert_allclose(angle, angle.round(), atol=1e-4)


def test_mixtures_keep_their_shares():
    parts = parts_of("scenes_texture:7+flashes:2+blank")
    np.testing.assert_allclose([w for _, w in parts], [0.7, 0.2, 0.1])
    shown = schedule(parts, 40_000, 0.02, "train", 0)
    np.testing.assert_allclose(np.bincount(shown) / 40_000, [0.7, 0.2, 0.1], atol=0.02)
    columns, name = lattice(1), "white_noise:0.5+blank:0.5"
    x = luminance(name, columns, 5000, 0.02)
    blank = (x == 0.5).all(1)
    assert 0.4 < blank.mean() < 0.6
    # A part goes on where it was left.
    np.testing.assert_array_equal(x[~blank], luminance("white_noise", columns, int((~blank).sum()), 0.02))
    assert other_kind("scenes_flow:0.2+scenes_texture:0.8") == "scenes_flow"


@pytest.mark.parametrize(
    "name, message",
    [
        ("flashes:0.5+blnk:0.5", "Did you mean 'blank'"),
        ("flashes:-1+blank", "positive weight"),
        ("flashes:much", "positive weight"),
        ("flashes:nan+blank", "positive weight"),
        ("blank+blank", "twice"),
        ("", "unknown stimulus"),
    ],
)
def test_bad_mixtures_are_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        luminance(name, lattice(1), 10, 0.02)
    assert "\n" not in str(caught.value)
