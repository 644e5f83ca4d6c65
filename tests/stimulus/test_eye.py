"""The box eye against the real flyvis, and against a loop over boxes."""

import numpy as np
import pytest

from flyjax.circuit.hexgrid import flip, flip_matrix, rotation, rotation_matrix
from flyjax.stimulus.eye import BoxEye, resample
from flyjax.utils.errors import UserError


def lattice(extent):
    span = range(-extent, extent + 1)
    return np.array([(u, v) for u in span for v in span if abs(u + v) <= extent])


@pytest.fixture(scope="module")
def flyvis(golden):
    return np.load(golden / "flyvis_eye.npz")


def test_flyvis_renderings(flyvis):
    eye = BoxEye(lattice(3), 13)
    np.testing.assert_array_equal(eye.receptor_centres, flyvis["eye_receptor_centers_extent3_kernel13"])
    for movie in "AB":  # B is smaller than the eye: resized first
        frames = flyvis[f"eye_frames_{movie}"]
        for how, tolerance in (("mean", 2e-6), ("sum", 3e-4)):
            np.testing.assert_allclose(eye(frames, how), flyvis[f"eye_{how}_{movie}"][:, :, 0], atol=tolerance)
    np.testing.assert_allclose(eye(flyvis["eye_frames_A"], "median"), flyvis["eye_median_A"][:, :, 0], atol=1e-7)


def test_flyvis_symmetries(flyvis):
    columns = lattice(3)
    for n in range(6):
        np.testing.assert_array_equal(rotation(columns, n), flyvis["rotate_perm_extent3"][n])
        np.testing.assert_allclose(rotation_matrix(n), flyvis["rotate_mat2"][n], atol=1e-6)
    for axis in (1, 2, 3):
        np.testing.assert_array_equal(flip(columns, axis), flyvis["flip_perm_extent3"][axis - 1])
        np.testing.assert_allclose(flip_matrix(axis), flyvis["flip_mat2"][axis - 1], atol=1e-6)


def test_flyvis_resampling(flyvis):
    frames = flyvis["interp_in"]
    np.testing.assert_array_equal(resample(np.arange(19), 24, 50), flyvis["interp_nearest_indices_19"])
    np.testing.assert_array_equal(resample(frames, 24, 50), flyvis["interp_nearest_24_50"])
    np.testing.assert_allclose(resample(frames, 24, 50, "linear"), flyvis["interp_linear_24_50"], atol=1e-6)


def test_boxes_one_by_one():
    rng = np.random.default_rng(0)
    columns, frame = lattice(2), rng.random((41, 37))
    eye = BoxEye(columns, 7)
    padded = np.pad(frame, 40)
    for i, (u, v) in enumerate(columns):
        row, col = 40 + 41 // 2 + int(7 * (u + v / 2)), 40 + 37 // 2 + 7 * v
        box = padded[row - 3 : row + 4, col - 3 : col + 4]
        assert abs(eye(frame)[i] - box.mean()) < 1e-6
        assert abs(eye(frame, "sum")[i] - box.sum()) < 1e-5
        assert abs(eye(frame, "median")[i] - np.median(box)) < 1e-6
    ones = np.ones(eye.min_frame_size)
    assert eye.min_frame_size == (29, 29)
    # The outermost boxes reach beyond the smallest image, by half a kernel at most, into zeros.
    assert eye(ones).max() == 1 and 0.25 < eye(ones).min() < 1
    assert eye(np.ones((35, 35))).min() == 1


def test_extent_8_needs_the_square_of_the_reference():
    assert BoxEye(lattice(8)).min_frame_size == (209, 209)


def test_symmetries_form_a_group_and_refuse_a_torn_lattice():
    columns = lattice(4)
    values = np.random.default_rng(1).random(len(columns))
    one = rotation(columns, 1)
    np.testing.assert_array_equal(values[one][one], values[rotation(columns, 2)])
    np.testing.assert_array_equal(values[rotation(columns, 6)], values)
    # A bright column at (1, 0) turns to (0, 1).
    bright = np.array([tuple(c) == (1, 0) for c in columns.tolist()], float)
    assert tuple(columns[bright[one].argmax()]) == (0, 1)
    for axis in (1, 2, 3):
        p = flip(columns, axis)
        np.testing.assert_array_equal(values[p][p], values)
    with pytest.raises(UserError, match="hexagon"):
        rotation(columns[1:], 1)
    with pytest.raises(UserError, match="axes"):
        flip(columns, 4)


def test_resampling_to_the_same_rate_changes_nothing():
    frames = np.random.default_rng(2).random((23, 3)).astype(np.float32)
    for how in ("nearest", "linear"):
        np.testing.assert_allclose(resample(frames, 24, 24, how), frames, atol=1e-6)
        assert len(resample(frames, 24, 100, how)) == 96  # ceil(95.83)
        assert len(resample(frames, 24, 12, how)) == 12
    assert len(resample(frames[:1], 24, 50, "linear")) == 3
