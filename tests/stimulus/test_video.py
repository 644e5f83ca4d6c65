"""Data sets in the shape of DAVIS and Sintel, made here with known content, and real film files."""

import os

import numpy as np
import pytest
from PIL import Image

from flyjax.circuit.hexgrid import flip, rotation
from flyjax.config import Simulation
from flyjax.stimulus import available, fingerprint, flow, luminance, sintel, video
from flyjax.stimulus.davis import DAVIS, split_videos
from flyjax.stimulus.eye import BoxEye, resample
from flyjax.utils.errors import UserError


def lattice(extent):
    span = range(-extent, extent + 1)
    return np.array([(u, v) for u in span for v in span if abs(u + v) <= extent])


COLUMNS = lattice(1)
NAMES = [f"clip-{k}" for k in range(10)]


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("FLYJAX_DATA", raising=False)


def pixels(k, t, height=48, width=64):
    """Smooth colour gradients that JPEG keeps; every video and frame has its own level and slope."""
    y, x = np.mgrid[0:height, 0:width]
    red = 20 * k + 0.8 * x + 2 * t
    green = 200 - 15 * k + 0 * x
    blue = 60 + 1.5 * y + 3 * t
    return np.stack([red, green, blue], -1).clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def davis_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets") / "DAVIS"
    # Made in another order than that of the names.
    for k in np.random.default_rng(0).permutation(len(NAMES)):
        folder = root / "JPEGImages" / "480p" / NAMES[k]
        folder.mkdir(parents=True)
        for t in reversed(range(3 + k)):
            Image.fromarray(pixels(k, t)).save(folder / f"{t:05d}.jpg", quality=97)
    (root / "JPEGImages" / "480p" / ".DS_Store").write_text("")
    return root.parent


def test_a_frame_is_luma_through_boxes(davis_folder):
    seen = video.view_film(davis_folder / "DAVIS" / "JPEGImages" / "480p" / "clip-3", COLUMNS).luminance
    assert seen.shape == (6, 7)
    truth = np.stack([pixels(3, t) @ np.array([0.299, 0.587, 0.114]) / 255 for t in range(6)])
    np.testing.assert_allclose(seen, BoxEye(COLUMNS)(truth), atol=0.01)  # JPEG
    # Equal weights for the three colours would be visible.
    assert np.abs(seen - BoxEye(COLUMNS)(np.stack([pixels(3, t).mean(-1) / 255 for t in range(6)]))).mean() > 0.03


def test_the_split_follows_from_names_alone(davis_folder, monkeypatch):
    found = DAVIS.videos(davis_folder)
    train, test = (split_videos(found, split) for split in ("train", "test"))
    assert len(train) == 8 and len(test) == 2 and sorted(p.name for p in train + test) == NAMES
    listing = type(davis_folder).iterdir
    monkeypatch.setattr(type(davis_folder), "iterdir", lambda self: reversed(list(listing(self))))
    assert split_videos(DAVIS.videos(davis_folder), "train") == train
    assert split_videos(found[::-1], "test") == test
    # 71 videos were 56 and 15 in the predecessor.
    assert [len(split_videos([davis_folder / str(k) for k in range(71)], s)) for s in ("train", "test")] == [56, 15]


def test_davis_plays_every_variant_once_and_then_again(davis_folder):
    one = luminance("DAVIS", COLUMNS, 1000, 0.02, "train", 0, davis_folder)
    assert one.dtype == np.float32 and 0 <= one.min() and one.max() <= 1
    np.testing.assert_array_equal(one[:300], luminance("DAVIS", COLUMNS, 300, 0.02, "train", 0, davis_folder))
    assert np.abs(one - luminance("DAVIS", COLUMNS, 1000, 0.02, "train", 1, davis_folder)).max() > 0.01
    # One cycle holds each training frame in its 8 variants, one frame per step whatever dt.
    train = split_videos(DAVIS.videos(davis_folder), "train")
    clips = [video.view_film(p, COLUMNS).luminance for p in train]
    cycle = 8 * sum(map(len, clips))
    played = luminance("DAVIS", COLUMNS, cycle, 0.01, "train", 0, davis_folder)
    variants = [flip(COLUMNS, a)[rotation(COLUMNS, n)] for a in (0, 1) for n in range(4)]
    expected = np.concatenate([clip[:, v] for clip in clips for v in variants])
    order = lambda x: x[np.lexsort(x.T)]  # noqa: E731
    np.testing.assert_array_equal(order(played), order(expected))
    test = luminance("DAVIS", COLUMNS, 200, 0.02, "test", 0, davis_folder)
    assert not {tuple(f) for f in test.tolist()} & {tuple(f) for f in expected.tolist()}


def test_frame_rates_are_explicit(davis_folder):
    clips = [video.view_film(p, COLUMNS).luminance for p in split_videos(DAVIS.videos(davis_folder), "test")]
    n = 8 * sum(len(resample(c, 24, 50)) for c in clips)
    slow = luminance("DAVIS", COLUMNS, n, 0.02, "test", 0, davis_folder, frame_rate="resampled")
    fast = luminance("DAVIS", COLUMNS, n, 0.02, "test", 0, davis_folder)
    still = lambda x: (np.abs(np.diff(x, axis=0)).max(1) == 0).mean()  # noqa: E731
    assert 0.4 < still(slow) < 0.6 and still(fast) < 0.05
    with pytest.raises(UserError, match="Did you mean 'native'"):
        luminance("DAVIS", COLUMNS, n, 0.02, "test", 0, davis_folder, frame_rate="nativ")


def test_where_data_is_looked_for(davis_folder, monkeypatch, tmp_path):
    assert {"scenes_texture", "scenes_flow"} <= set(available()) and not {"DAVIS", "optical_flow"} & set(available())
    with pytest.raises(UserError, match="DAVIS-2017.*FLYJAX_DATA.*scenes_texture") as caught:
        luminance("DAVIS", COLUMNS, 10, 0.02)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="MPI-Sintel-complete.zip.*FLYJAX_DATA.*scenes_flow"):
        luminance("optical_flow", COLUMNS, 10, 0.02, data_path=davis_folder)
    monkeypatch.setenv("FLYJAX_DATA", str(davis_folder))
    assert "DAVIS" in available() and "optical_flow" not in available()
    assert luminance("DAVIS", COLUMNS, 10, 0.02).shape == (10, 7)
    # Given directly: the folder of the data set, or one of videos.
    for path in (davis_folder / "DAVIS", davis_folder / "DAVIS" / "JPEGImages" / "480p"):
        assert luminance("DAVIS", COLUMNS, 10, 0.02, data_path=path).shape == (10, 7)
    with pytest.raises(UserError, match=str(tmp_path)):
        luminance("DAVIS", COLUMNS, 10, 0.02, data_path=tmp_path)
    (tmp_path / "only").mkdir()
    Image.fromarray(pixels(0, 0)).save(tmp_path / "only" / "0.png")
    with pytest.raises(UserError, match="at least 2"):
        luminance("DAVIS", COLUMNS, 10, 0.02, data_path=tmp_path)


def test_changed_files_change_the_fingerprint(tmp_path):
    for k in range(2):
        (tmp_path / f"v{k}").mkdir()
        Image.fromarray(pixels(k, 0)).save(tmp_path / f"v{k}" / "0.png")
    before = fingerprint("DAVIS", tmp_path)
    assert before == fingerprint("DAVIS", tmp_path) and fingerprint("scenes_flow") is None
    first = luminance("DAVIS", COLUMNS, 20, 0.02, "train", 0, tmp_path)
    for k in range(2):
        Image.fromarray(255 - pixels(k, 0, 47)).save(tmp_path / f"v{k}" / "0.png")
    assert fingerprint("DAVIS", tmp_path) != before
    assert np.abs(luminance("DAVIS", COLUMNS, 20, 0.02, "train", 0, tmp_path) - first).max() > 0.05
    (tmp_path / "v1" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="cannot read .*0.png"):
        [luminance("DAVIS", COLUMNS, 20, 0.02, split, 0, tmp_path) for split in ("train", "test")]


def test_a_gif_is_decoded(tmp_path):
    grey = [Image.fromarray(np.full((50, 60), 40 * k, np.uint8)) for k in range(5)]
    grey[0].save(tmp_path / "a.gif", save_all=True, append_images=grey[1:], duration=40)
    seen = video.view_film(tmp_path / "a.gif", COLUMNS).luminance
    np.testing.assert_allclose(seen, np.tile(40 * np.arange(5)[:, None] / 255, 7), atol=0.01)


@pytest.mark.parametrize("suffix, codec", [(".mp4", "libx264"), (".avi", "mpeg4")])
def test_a_real_film_is_decoded(tmp_path, suffix, codec):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: no films")
    path = tmp_path / f"film{suffix}"
    writer = ffmpeg.write_frames(path, (64, 48), fps=24, codec=codec, quality=9)
    writer.send(None)
    for t in range(12):
        writer.send(pixels(3, t).tobytes())
    writer.close()
    seen = video.view_film(path, COLUMNS).luminance
    truth = np.stack([pixels(3, t) @ np.array([0.299, 0.587, 0.114]) / 255 for t in range(12)])
    np.testing.assert_allclose(seen, BoxEye(COLUMNS)(truth), atol=0.03)
    path.write_bytes(b"no film")
    with pytest.raises(UserError, match="cannot read"):
        video.view_film(path, COLUMNS)


def test_films_without_a_decoder_say_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        video.view_film(tmp_path / "film.mp4", COLUMNS)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    for t in (10, 9, 1, 100, 2):
        Image.fromarray(np.full((50, 60), 2 * t, np.uint8)).save(tmp_path / f"frame{t}.png")
    order = video.view_film(tmp_path, COLUMNS).luminance[:, 0] * 255 / 2
    np.testing.assert_allclose(order, [1, 2, 9, 10, 100], atol=1e-4)


# -- Sintel ----------------------------------------------------------------------------------------

SCENES = ("alley_1", "ambush_2", "cave_2", "market_5", "mountain_1")
H, W = 44, 200


def picture(k, t):
    y, x = np.mgrid[0:H, 0:W]
    return (30 + 20 * k + 0.5 * x + y + 2 * t).clip(0, 255).round().astype(np.uint8)


def motion(k, t):
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([1 + k + 0.01 * x, 2 - 0.02 * y - t], -1).astype("<f4")


@pytest.fixture(scope="module")
def sintel_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sintel")
    for k, scene in enumerate(SCENES):
        final, flow = root / "training" / "final" / scene, root / "training" / "flow" / scene
        final.mkdir(parents=True), flow.mkdir(parents=True)
        for t in range(6):
            Image.fromarray(np.repeat(picture(k, t)[..., None], 3, 2)).save(final / f"frame_{t + 1:04d}.png")
            if t < 5:
                head = np.float32(202021.25).tobytes() + np.array([W, H], "<i4").tobytes()
                (flow / f"frame_{t + 1:04d}.flo").write_bytes(head + motion(k, t).tobytes())
    return root


def test_windows_of_the_real_format():
    # 1024 px wide, extent 15: 716 px are kept, the eye asks for 391 + 26, three overlapping windows.
    at = sintel.windows(1024, 391 + 26)
    assert [(w.start, w.stop) for w in at] == [(154, 571), (303, 720), (452, 869)]
    narrow = sintel.windows(1024, 105)
    assert [(w.start, w.stop) for w in narrow] == [(154, 392), (393, 631), (632, 870)]


def test_sintel_clips_are_boxes_of_the_right_pixels(sintel_folder):
    assert sintel.split_scenes(sintel_folder, "test") == ["ambush_2", "mountain_1"]
    assert sintel.split_scenes(sintel_folder, "train") == ["alley_1", "cave_2", "market_5"]
    eye = BoxEye(COLUMNS)
    clips = sintel.clips(sintel_folder, "train", COLUMNS, with_flow=True)
    assert len(clips) == 9
    at = sintel.windows(W, eye.min_frame_size[1] + 26)
    for c, clip in enumerate(clips):
        k, window = (0, 2, 3)[c // 3], at[c % 3]
        # Frame n + 1 goes with the flow from n to n + 1.
        frames = np.stack([picture(k, t + 1)[:, window] / 255 for t in range(5)])
        np.testing.assert_allclose(clip.luminance, eye(frames), atol=2e-3)
        for axis, sign in ((0, 1), (1, -1)):
            field = np.stack([sign * motion(k, t)[:, window, axis] / 13 for t in range(5)])
            np.testing.assert_allclose(clip.flow[..., axis], eye(field), rtol=1e-4, atol=1e-4)


def test_sintel_is_resampled_to_the_step(sintel_folder):
    x = luminance("optical_flow", COLUMNS, 400, 0.02, "train", 0, sintel_folder)
    clips = sintel.clips(sintel_folder, "train", COLUMNS)
    # 5 frames at 24/s are 11 at 50/s; cuts lie at multiples of 11.
    assert len(resample(clips[0].luminance, 24, 50)) == 11
    known = {tuple(f) for c in clips for f in np.sort(c.luminance, axis=1).round(5).tolist()}
    assert {tuple(f) for f in np.sort(x, axis=1).round(5).tolist()} <= known
    still = np.abs(np.diff(x, axis=0)).max(1) == 0
    assert still.reshape(-1)[: 33 * 11].reshape(33, 11)[:, :10].mean() == pytest.approx(0.6)
    native = luminance("optical_flow", COLUMNS, 400, 0.02, "train", 0, sintel_folder, frame_rate="native")
    assert (np.abs(np.diff(native, axis=0)).max(1) == 0).mean() < 0.05
    test = luminance("optical_flow", COLUMNS, 100, 0.02, "test", 0, sintel_folder)
    assert not {tuple(f) for f in np.sort(test, axis=1).round(5).tolist()} & known


def test_sintel_flow_in_columns_per_second(tmp_path):
    # 2 px to the right and 1.5 px up per frame, everywhere: 13 px are a column, 24 frames a second.
    for scene in ("a", "b"):
        final, flow_dir = (tmp_path / "training" / d / scene for d in ("final", "flow"))
        final.mkdir(parents=True), flow_dir.mkdir(parents=True)
        field = np.broadcast_to(np.array([2.0, -1.5], "<f4"), (H + 16, W, 2))
        head = np.float32(202021.25).tobytes() + np.array([W, H + 16], "<i4").tobytes()
        for t in range(4):
            Image.fromarray(np.full((H + 16, W), 60 * t, np.uint8)).save(final / f"frame_{t}.png")
            if t < 3:
                (flow_dir / f"frame_{t}.flo").write_bytes(head + field.tobytes())
    fast = np.hypot(2, 1.5) / 13
    resampled = flow("optical_flow", COLUMNS, 200, 0.02, data_path=tmp_path)
    np.testing.assert_allclose(np.hypot(*resampled.T), fast * 24, rtol=1e-5)
    native = flow("optical_flow", COLUMNS, 200, 0.02, data_path=tmp_path, frame_rate="native")
    np.testing.assert_allclose(np.hypot(*native.T), fast * 50, rtol=1e-5)
    # Turned and mirrored with the picture: 8 directions, among them the movie's own.
    assert len(np.unique(native[:, 0].round(3), axis=0)) == 8
    assert np.abs(native[:, 0] - np.array([2, 1.5]) / 13 * 50).max(1).min() < 1e-4
    with pytest.raises(UserError, match="not known"):
        flow("DAVIS", COLUMNS, 10, 0.02, data_path=tmp_path)


def test_damaged_sintel_is_refused(sintel_folder, tmp_path):
    good = sintel_folder / "training" / "flow" / "alley_1" / "frame_0001.flo"
    np.testing.assert_array_equal(sintel.read_flo(good), motion(0, 0))
    for name, data in {"torn": good.read_bytes()[:-4], "tag": b"\0" * 20, "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="unpack"):
            sintel.read_flo(tmp_path / name)
    final = tmp_path / "training" / "final"
    for scene in ("a", "b"):
        (final / scene).mkdir(parents=True)
        (tmp_path / "training" / "flow" / scene).mkdir(parents=True)
        for t in range(3):
            Image.fromarray(picture(0, t)).save(final / scene / f"frame_{t}.png")
        os.link(good, tmp_path / "training" / "flow" / scene / "frame_0.flo")
    assert luminance("optical_flow", COLUMNS, 10, 0.02, "train", 0, tmp_path).shape == (10, 7)
    with pytest.raises(UserError, match="1 .flo files for 3 frames"):
        sintel.clips(tmp_path, "train", COLUMNS, with_flow=True)


def test_a_recording_names_the_absent_set():
    from flyjax.data import stimulus_for_split

    simulation = Simulation(extent=1, visual_input_type="DAVIS", n_frames=20)
    assert (
        stimulus_for_split(simulation, "train") == "DAVIS" and stimulus_for_split(simulation, "test") == "optical_flow"
    )
