"""Pictures of every mode and orientation, films of every frame rate, and files that are damaged."""

import io
import os
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flyjax.stimulus import fingerprint, luminance, video
from flyjax.stimulus.davis import DAVIS
from flyjax.utils.errors import UserError

COLUMNS = np.array([(0, 0)])
RAMP = np.tile(np.linspace(0, 1, 32), (20, 1))


def read(picture, path, **options):
    """Luminance of a picture that was written to `path` and read as a video of one frame."""
    path.parent.mkdir(exist_ok=True)
    picture.save(path, **options)
    ((frame, _),) = video.frames(path.parent)
    return frame


def picture(mode):
    grey = Image.fromarray((RAMP * 255).round().astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    if mode == "P":
        return grey.convert("RGB").quantize(32)
    if mode == "LA;transparent":
        return Image.merge("LA", [grey, Image.new("L", grey.size, 255)])
    return grey.convert("RGB").convert(mode)


@pytest.mark.parametrize(
    "mode, suffix",
    [("L", "png"), ("I;16", "png"), ("I;16", "tif"), ("LA", "png"), ("RGB", "png"), ("RGBA", "png"), ("P", "png")]
    + [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg"), ("L", "jpg"), ("RGB", "bmp"), ("RGB", "webp")],
)
def test_a_ramp_is_the_same_in_every_mode(tmp_path, mode, suffix):
    options = {"jpg": {"quality": 98}, "webp": {"lossless": True}}.get(suffix, {})
    seen = read(picture(mode), tmp_path / "clip" / f"0.{suffix}", **options)
    assert seen.dtype == np.float32 and seen.shape == RAMP.shape
    np.testing.assert_allclose(seen, RAMP, atol=0.02)


def test_a_bitmap_has_black_and_white(tmp_path):
    seen = read(Image.fromarray(RAMP > 0.5), tmp_path / "clip" / "0.png")
    np.testing.assert_allclose(seen, RAMP > 0.5, atol=1e-6)


def test_big_endian_16_bits_are_scaled(tmp_path):
    path = tmp_path / "clip" / "0.tif"
    path.parent.mkdir()
    values = (RAMP * 65535).round().astype(">u2")
    with io.BytesIO() as buffer:
        Image.fromarray(values.astype("<u2")).save(buffer, "TIFF")
        little = buffer.getvalue()
    Image.frombytes("I;16B", (32, 20), values.tobytes()).save(path)
    assert path.read_bytes() != little
    ((seen, _),) = video.frames(path.parent)
    np.testing.assert_allclose(seen, RAMP, atol=1e-4)


@pytest.mark.parametrize("mode, dtype", [("I", np.int32), ("F", np.float32)])
def test_a_mode_without_a_white_is_refused(tmp_path, mode, dtype):
    with pytest.raises(UserError, match=r"0\.tif.*" + mode):
        read(Image.fromarray((RAMP * 255).astype(dtype)), tmp_path / "clip" / "0.tif")


def test_transparent_pixels_are_black(tmp_path):
    alpha = Image.fromarray((RAMP > 0.5).astype(np.uint8) * 255)
    white = Image.merge("LA", [Image.new("L", alpha.size, 255), alpha])
    palette = Image.fromarray((RAMP > 0.5).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 255, 255, 255])
    for k, made in enumerate((white, white.convert("RGBA"), palette)):
        seen = read(made, tmp_path / f"clip{k}" / "0.png", **({"transparency": 0} if made is palette else {}))
        np.testing.assert_allclose(seen, RAMP > 0.5, atol=1e-3)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_undone(tmp_path, orientation, mode):
    scene = np.zeros((20, 32))
    scene[2:6, 3:20] = 1
    stored = {
        1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.T, 6: np.rot90(scene),
        7: np.rot90(scene.T, 2), 8: np.rot90(scene, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    white, dtype = (65535, np.uint16) if mode == "I;16" else (255, np.uint8)
    made = Image.fromarray(np.ascontiguousarray(stored * white).astype(dtype))
    made = made if mode == "I;16" else made.convert(mode)
    np.testing.assert_allclose(read(made, tmp_path / "clip" / "0.png", exif=exif), scene, atol=0.01)


# -- Frame rates -----------------------------------------------------------------------------------


def gif(path, durations, levels=None):
    levels = levels or [20 * k for k in range(len(durations))]
    stills = [Image.fromarray(np.full((20, 30), level, np.uint8)) for level in levels]
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=durations)
    return path


def levels_of(path, rate=50, **options):
    return (video.view_film(path, COLUMNS).at_rate(rate, **options)[:, 0] * 255 / 20).round().astype(int).tolist()


@pytest.mark.parametrize("duration, repeats", [(20, 1), (40, 2), (100, 5)])
def test_a_gif_is_played_at_its_own_rate(tmp_path, duration, repeats):
    found = levels_of(gif(tmp_path / "a.gif", [duration] * 4))
    assert found == np.repeat(range(4), repeats).tolist()


def test_frames_of_a_gif_have_durations_of_their_own(tmp_path):
    assert levels_of(gif(tmp_path / "a.gif", [40, 20, 100])) == [0, 0, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("rate", [10, 25, 60])
def test_a_film_is_played_at_its_own_rate(tmp_path, rate):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: no films")
    writer = ffmpeg.write_frames(tmp_path / "a.mp4", (64, 48), fps=rate, quality=9)
    writer.send(None)
    for t in range(2 * rate):
        writer.send(np.full((48, 64, 3), 50 + 100 * (t >= rate), np.uint8).tobytes())
    writer.close()
    seen = video.view_film(tmp_path / "a.mp4", COLUMNS).at_rate(50)
    assert len(seen) == 100  # two seconds
    assert (seen[:49] < 0.3).all() and (seen[51:] > 0.5).all()


def test_the_rate_of_a_folder_is_a_setting(tmp_path):
    for k in range(3):
        Image.fromarray(np.full((20, 30), 20 * k, np.uint8)).save(tmp_path / f"{k}.png")
    assert len(levels_of(tmp_path)) == 7  # 24 frames per second
    assert levels_of(tmp_path, folder_rate=25) == [0, 0, 1, 1, 2, 2]
    settings = dict(split="train", data_path=tmp_path, frame_rate="resampled")
    fast, slow = (luminance("video", COLUMNS, 40, 0.02, folder_rate=rate, **settings) for rate in (50, 10))
    assert (np.diff(slow[:, 0]) != 0).sum() < (np.diff(fast[:, 0]) != 0).sum()


# -- Damage ----------------------------------------------------------------------------------------


def refused(path, name):
    with pytest.raises(UserError) as error:
        video.view_film(path, COLUMNS)
    assert name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def png(*chunks):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in (*chunks, (b"IEND", b"")))


def header(width, height):
    return b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_picture_too_large_is_refused(tmp_path, side):
    (tmp_path / "0.png").write_bytes(png(header(side, side), (b"IDAT", zlib.compress(b"\0" * 100))))
    refused(tmp_path, "0.png")


def test_a_text_bomb_is_refused(tmp_path):
    bomb = zlib.compress(b"a" * (100 << 20))
    rows = zlib.compress(b"\0\7\7" * 2)
    (tmp_path / "0.png").write_bytes(png(header(2, 2), (b"zTXt", b"bomb\0\0" + bomb), (b"IDAT", rows)))
    refused(tmp_path, "0.png")


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "0.png").symlink_to("1.png"), (tmp_path / "1.png").symlink_to("0.png")
    refused(tmp_path, "0.png")
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(UserError):
        luminance("video", COLUMNS, 3, 0.02, data_path=loop)


def test_names_that_are_no_utf8_are_read_or_named(tmp_path):
    for k in range(2):
        folder = os.fsencode(tmp_path) + b"/\xff%d" % k
        os.mkdir(folder)
        Image.new("L", (20, 30), 100 + k).save(os.fsdecode(folder + b"/\xfe.png"))
    for name in ("DAVIS", "video"):
        assert luminance(name, COLUMNS, 3, 0.02, data_path=tmp_path).shape == (3, 1)
        assert fingerprint(name, tmp_path)
    damaged = DAVIS.videos(tmp_path)[0] / os.fsdecode(b"\xfe.png")
    damaged.write_bytes(b"no picture")
    refused(damaged.parent, "xfe.png").encode("utf-8")


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.gif"])
@pytest.mark.parametrize("content", [b"", b"no film", b"GIF89a" + b"\xff" * 20])
def test_films_that_are_none_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "ffmpeg version" not in refused(tmp_path / name, name)


def mutants(original):
    """Copies with some bytes changed, or cut."""
    return st.tuples(
        st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), max_size=6),
        st.integers(0, len(original)),
    )


@pytest.mark.parametrize("name", ["a.gif", "0.png", "0.jpg", "0.tif"])
def test_a_mutant_is_read_or_refused(tmp_path, name):
    path = tmp_path / name
    if name == "a.gif":
        gif(path, [40, 20, 100])
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture("RGB").save(path, exif=exif)
    original = path.read_bytes()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(mutants(original))
    def check(mutant):
        changes, end = mutant
        data = bytearray(original)
        for at, value in changes:
            data[at] = value
        path.write_bytes(bytes(data[: end if end > len(data) // 2 else None]))
        try:
            seen = np.stack([f.mean() for f, _ in video.frames(path if name == "a.gif" else tmp_path)] or [0])
        except UserError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            assert np.isfinite(seen).all() and (seen >= 0).all() and (seen <= 1 + 1e-6).all()

    check()
