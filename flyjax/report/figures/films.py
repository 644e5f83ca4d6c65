"""Moving pictures of stimulus and activity, and a still one of the built-in scenes."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import KDTree

from flyjax.report.figures.hexmaps import (
    DEVIATION_COLOURS,
    PATHWAY,
    Layer,
    VoltageMaps,
    draw_hexagons,
    hexagon_centres,
)
from flyjax.report.figures.style import LEARNED, MUTED, TRUE, house_style, new_figure, save_png, type_colour
from flyjax.stimulus import scenes, video

N_COLUMNS = 4
TILE = 128  # height of a map, pixels
LABEL = 22  # height of its label, pixels
GAP = 12
BACKGROUND = 228  # grey level, neither white stimulus nor the middle of the colour scale
N_COLOURS = 48  # of a map

Film = UInt8[np.ndarray, "frames height width 3"]


@lru_cache(maxsize=4)
def column_of_pixel(columns: bytes, height: int) -> Int[np.ndarray, "height width"]:
    """Index of the column under each pixel, n_col where there is none; `columns` holds (n_col, 2) int64 values."""
    centres = hexagon_centres(np.frombuffer(columns, np.int64).reshape(-1, 2))
    reach = np.abs(centres).max(axis=0) + 0.6
    scale = height / (2 * reach[1])
    width = int(2 * reach[0] * scale)
    x = (np.arange(width) + 0.5 - width / 2) / scale
    y = (np.arange(height) + 0.5 - height / 2) / scale
    # A hexagon's corners lie 1/sqrt(3) from its centre.
    return KDTree(centres).query(np.stack(np.meshgrid(x, y), axis=-1), distance_upper_bound=1 / np.sqrt(3))[1]


def _draw_tiles(columns: Int[np.ndarray, "n_col 2"], layer: Layer) -> Film:
    """The maps of one layer, `TILE` pixels high."""
    table = (matplotlib.colormaps[layer.colours](np.linspace(0, 1, N_COLOURS))[:, :3] * 255).astype(np.uint8)
    values = np.nan_to_num(layer.values, nan=(layer.low + 1) / 2)
    level = np.clip((values - layer.low) / (1 - layer.low), 0, 1) * (N_COLOURS - 1)
    blank = np.full((len(values), 1, 3), BACKGROUND, np.uint8)
    colours = np.concatenate([table[np.rint(level).astype(np.int64)], blank], axis=1)
    return colours[:, column_of_pixel(np.ascontiguousarray(columns, np.int64).tobytes(), TILE)]


def film_frames(maps: VoltageMaps, first_frame: int = 0, n_frames: int = 150) -> Film:
    """The stimulus and one cell type per stage, frame by frame, above the scale of colours, a clock and a time bar."""
    frames = np.arange(first_frame, min(first_frame + n_frames, maps.recording.n_frames - 1))
    layers = maps.layers(PATHWAY, frames, frames + 1)
    tiles = [_draw_tiles(maps.connectome.columns, layer) for layer in layers]
    width = tiles[0].shape[2]
    bottom = -(-len(layers) // N_COLUMNS) * (TILE + LABEL + 6) + 4  # of the maps
    size = [n + n % 2 for n in (N_COLUMNS * (width + GAP) + GAP, bottom + 40)]  # video codecs need even numbers
    background = Image.new("RGB", (size[0], size[1]), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(background)
    font, small = _fonts()
    places = []
    for k, layer in enumerate(layers):
        row, column = divmod(k, N_COLUMNS)
        x, y = GAP + column * (width + GAP), row * (TILE + LABEL + 6) + LABEL
        places.append((x, y))
        draw.text((x + width / 2, y - 6), layer.name, fill=layer.name_colour, font=font, anchor="ms")
        draw.text((x + width, y - 4), layer.scale, fill=MUTED, font=small, anchor="rb")
    bar = (matplotlib.colormaps[DEVIATION_COLOURS](np.linspace(0, 1, 2 * width))[None, :, :3] * 255).astype(np.uint8)
    background.paste(Image.fromarray(np.tile(bar, (8, 1, 1))), (GAP, bottom + 2))
    for share, text, anchor in ((0, "− scale", "lt"), (1, "own mean", "mt"), (2, "+ scale", "rt")):
        draw.text((GAP + share * width, bottom + 13), text, fill=TRUE, font=small, anchor=anchor)
    film = np.tile(np.asarray(background), (len(frames), 1, 1, 1))
    for tile, (x, y) in zip(tiles, places, strict=True):
        film[:, y : y + TILE, x : x + width] = tile
    for k, frame in enumerate(film):
        frame[-8:-5, GAP : GAP + (size[0] - 2 * GAP) * (k + 1) // len(film)] = 140
        clock = Image.new("RGB", (width, 20), (BACKGROUND,) * 3)
        ImageDraw.Draw(clock).text((width, 2), f"{k * maps.recording.dt:.2f} s", fill=TRUE, font=font, anchor="rt")
        frame[bottom + 4 : bottom + 24, size[0] - GAP - width : size[0] - GAP] = np.asarray(clock)
    return film


def _fonts() -> tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont]:
    """A bold font for names and a smaller one for notes."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / "DejaVuSans-Bold.ttf", 12), ImageFont.truetype(folder / "DejaVuSans.ttf", 10)


def comparison_frames(
    maps: VoltageMaps,
    learned: Float[np.ndarray, "T N"],
    camera: Float[np.ndarray, "frames height width"],
    cell_types: Sequence[str],
    first_frame: int = 0,
) -> Film:
    """The video and what the eye sees of it, then one cell type per column: true above, learned below.

    **Arguments:**

    - `learned`: voltages of a free rollout on the recording, drawn on the scale of the true ones.
    - `camera`: the video from `first_frame` on, in [0, 1]; its length is that of the film.
    """
    frames = np.arange(first_frame, first_frame + len(camera))
    c, rows = maps.connectome, (maps, VoltageMaps.on_scale_of(maps, learned))
    tiles = [[_draw_tiles(c.columns, layer) for layer in row.layers(cell_types, frames, frames)] for row in rows]
    width, name_width = tiles[0][0].shape[2], 68
    bottom = 2 * (TILE + 8) + LABEL
    size = [n + n % 2 for n in (name_width + len(tiles[0]) * (width + GAP), bottom + 22)]
    background = Image.new("RGB", (size[0], size[1]), (BACKGROUND,) * 3)
    draw, (font, small) = ImageDraw.Draw(background), _fonts()
    for row, (name, colour) in enumerate((("true", TRUE), ("learned", LEARNED))):
        draw.text((name_width - 6, LABEL + row * (TILE + 8) + TILE / 2), name, fill=colour, font=font, anchor="rm")
    for k, name in enumerate(("video, eye", *cell_types)):
        middle = name_width + k * (width + GAP) + width / 2
        draw.text((middle, LABEL - 6), name, fill=type_colour(name) if k else TRUE, font=font, anchor="ms")
    note = "deviation of each voltage from its mean: red above, blue below"
    draw.text((size[0] - GAP, bottom + 4), note, fill=MUTED, font=small, anchor="rt")
    film = np.tile(np.asarray(background), (len(frames), 1, 1, 1))
    for row, maps_of_row in enumerate(tiles):
        for k, tile in enumerate(maps_of_row):
            y, x = LABEL + row * (TILE + 8), name_width + k * (width + GAP)
            film[:, y : y + TILE, x : x + width] = tile
    for k, picture in enumerate(camera):
        grey = Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8))
        shown = np.asarray(grey.resize((width, TILE), Image.Resampling.BILINEAR))
        film[k, LABEL : LABEL + TILE, name_width : name_width + width] = shown[..., None]
    return film


def write_gif(path: str | Path, film: Film, dt: float, slow: float = 2.0) -> Path:
    """Write an endless GIF, played `slow` times slower than life (its clock ticks every 10 ms)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One palette for all frames: no flicker, and unchanged pixels cost nothing.
    sample = Image.fromarray(np.concatenate(list(film[:: max(1, len(film) // 12)]), axis=0))
    palette = sample.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    first, *others = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in film]
    duration = max(20, round(dt * slow * 100) * 10)
    first.save(path, save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
    return path


def write_mp4(path: str | Path, film: Film, dt: float, slow: float = 2.0) -> Path | None:
    """Write the same as MP4; None where imageio-ffmpeg is not installed."""
    try:
        ffmpeg = video.ffmpeg()
    except ImportError:
        return None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"fps": 1 / (dt * slow), "quality": 7, "macro_block_size": 2, "ffmpeg_log_level": "error"}
    writer = ffmpeg.write_frames(str(path), (film.shape[2], film.shape[1]), **options)
    writer.send(None)
    for frame in film:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


@house_style
def scenes_figure(
    path: str | Path,
    columns: Int[np.ndarray, "n_col 2"],
    seconds: tuple[float, ...] = (0.3, 1.1, 1.9, 2.7, 3.5, 4.3, 5.1, 5.9),
    names: tuple[str, ...] = scenes.NAMES,
    seed: int = 0,
    dt: float = 0.02,
) -> Path:
    """Built-in scenes at some times: as a camera takes them (above) and as the fly's columns see them (below)."""
    frames = np.rint(np.asarray(seconds) / dt).astype(int)
    n_frames = int(frames.max()) + 1
    reach = np.abs(hexagon_centres(columns, 1.0)).max(axis=0) + 0.62
    figure = new_figure(9.6, 7.7)
    left, gap = 0.033, 0.004
    width, height = (0.997 - left) / len(frames), 0.955 / len(names)
    pixels = 6  # of the camera, per column
    for row, name in enumerate(names):
        camera = scenes.picture(name, columns, n_frames, dt, "train", seed, pixels)[frames]
        luminance = scenes.film(name, columns, n_frames, dt, "train", seed).luminance[frames]
        x_end, y_end = camera.shape[2] / pixels / 2, camera.shape[1] / pixels / 2
        top = 0.965 - row * height
        for k, time in enumerate(seconds):
            x = left + k * width
            upper = figure.add_axes((x, top - 0.48 * height, width - gap, 0.455 * height))
            upper.imshow(
                camera[k], extent=(-x_end, x_end, y_end, -y_end), cmap="gray", vmin=0, vmax=1, interpolation="bilinear"
            )
            upper.set(xlim=(-reach[0], reach[0]), ylim=(reach[1], -reach[1]))
            upper.axis("off")
            lower = figure.add_axes((x, top - 0.95 * height, width - gap, 0.455 * height))
            draw_hexagons(lower, columns, luminance[k], colours="gray", low=0, squeeze=1.0)
            if row == 0:
                upper.set_title(f"{time:.1f} s", fontsize=7, fontweight="normal", color=MUTED, loc="center", pad=2)
        figure.text(
            0.012, top - 0.47 * height, name, rotation=90, ha="center", va="center", fontsize=9, fontweight="bold"
        )
    return save_png(figure, path, "L")
