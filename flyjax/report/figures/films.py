"""Moving and still pictures of what the fly sees: a film of stimulus and activity, the strip of the built-in scenes."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flyjax.data.recording import Recording
from flyjax.report.figures.hexmaps import MAP, PATHWAY, View, _colour, centres, draw_hexagons
from flyjax.report.figures.node import DPI, MUTED, _save, styled
from flyjax.stimulus import scenes

N_ACROSS = 4
TILE = 128  # px, height of a map
LABEL = 18
PAPER = 228  # neither white light nor the middle of the colour scale


@lru_cache(maxsize=4)
def _raster(columns: bytes, height: int) -> np.ndarray:
    """(height, width) column under each pixel, n_col where there is none."""
    at = centres(np.frombuffer(columns, np.int64).reshape(-1, 2))
    reach = np.abs(at).max(axis=0) + 0.6
    scale = height / (2 * reach[1])
    width = int(2 * reach[0] * scale)
    x = (np.arange(width) + 0.5 - width / 2) / scale
    y = (np.arange(height) + 0.5 - height / 2) / scale
    nearest = np.full((height, width), len(at))
    best = np.full((height, width), 1 / np.sqrt(3))  # a hexagon's corners lie that far from its centre
    for k, (cx, cy) in enumerate(at):
        distance = np.hypot(x[None, :] - cx, y[:, None] - cy)
        closer = distance < best
        nearest[closer], best[closer] = k, distance[closer]
    return nearest


def _tiles(c, shown, cmap: str, low: float) -> np.ndarray:
    """(frames, TILE, width, 3) uint8 maps of (frames, n_col) values."""
    table = (matplotlib.colormaps[cmap](np.linspace(0, 1, 48))[:, :3] * 255).astype(np.uint8)
    level = np.clip((np.nan_to_num(shown, nan=(low + 1) / 2) - low) / (1 - low), 0, 1) * 47
    colours = table[np.rint(level).astype(np.int64)]
    blank = np.full((len(shown), 1, 3), PAPER, np.uint8)
    return np.concatenate([colours, blank], axis=1)[
        :, _raster(np.ascontiguousarray(c.columns, np.int64).tobytes(), TILE)
    ]


def film_frames(recording: Recording, first: int = 0, n_frames: int = 150, view: View | None = None) -> np.ndarray:
    """(frames, H, W, 3) uint8: the stimulus and one cell type per stage, frame by frame."""
    from PIL import Image, ImageDraw, ImageFont

    view, c = view or View(recording), recording.connectome
    frames = np.arange(first, min(first + n_frames, recording.n_frames - 1))
    names = [None, *(n for n in PATHWAY if n in c.cell_types)]
    parts = [
        _tiles(c, recording.luminance[frames], "gray", 0.0)
        if n is None
        else _tiles(c, view.maps(view.index(n), frames + 1), MAP, -1.0)
        for n in names
    ]
    width, gap = parts[0].shape[2], 12
    n_down = -(-len(names) // N_ACROSS)
    # Even numbers of pixels: video codecs want them.
    size = N_ACROSS * (width + gap) + gap, n_down * (TILE + LABEL + 6) + 20
    size = size[0] + size[0] % 2, size[1] + size[1] % 2
    ground = Image.new("RGB", size, (PAPER,) * 3)
    draw, font = ImageDraw.Draw(ground), Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(str(font), 12)
    places = []
    for k, name in enumerate(names):
        down, across = divmod(k, N_ACROSS)
        x, y = gap + across * (width + gap), down * (TILE + LABEL + 6) + LABEL
        places.append((x, y))
        draw.text(
            (x + width / 2, y - 3),
            name or "stimulus",
            fill="#1a1a1a" if name is None else _colour(name),
            font=font,
            anchor="mb",
        )
    film = np.tile(np.asarray(ground), (len(frames), 1, 1, 1))
    for part, (x, y) in zip(parts, places):
        film[:, y : y + TILE, x : x + width] = part
    for k, frame in enumerate(film):  # a bar that fills with time
        frame[-8:-5, gap : gap + (size[0] - 2 * gap) * (k + 1) // len(film)] = (140, 140, 140)
    return film


def write_gif(path, film: np.ndarray, dt: float, slow: float = 2.0) -> Path:
    """Endless gif, played `slow` times slower than life (a gif's clock ticks every 10 ms)."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One palette for all frames: no flicker, and unchanged pixels cost nothing.
    sample = Image.fromarray(np.concatenate(list(film[:: max(1, len(film) // 12)]), axis=0))
    palette = sample.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in film]
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=max(20, round(dt * slow * 100) * 10),
        loop=0,
        optimize=False,
    )
    return path


def write_mp4(path, film: np.ndarray, dt: float, slow: float = 2.0) -> Path | None:
    """The same as mp4; None where imageio-ffmpeg is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The encoder is a program of its own; forking beside JAX' threads is safe where exec follows at once.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (film.shape[2], film.shape[1]),
        fps=1 / (dt * slow),
        quality=7,
        macro_block_size=2,
        ffmpeg_log_level="error",
    )
    writer.send(None)
    for frame in film:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    return path


@styled
def scenes_figure(
    path, columns, seconds=(0.3, 1.1, 1.9, 2.7, 3.5, 4.3, 5.1, 5.9), names=scenes.NAMES, seed: int = 0, dt: float = 0.02
) -> Path:
    """Built-in scenes as a camera takes them (above) and as the fly's columns see them (below)."""
    frames = np.rint(np.asarray(seconds) / dt).astype(int)
    n = int(frames.max()) + 1
    at = centres(columns, 1.0)
    reach = np.abs(at).max(axis=0) + 0.62
    figure = Figure(figsize=(9.6, 7.7), dpi=DPI)
    left, gap = 0.033, 0.004
    width = (0.997 - left) / len(frames)
    height = 0.955 / len(names)
    pixels = 6
    for row, name in enumerate(names):
        camera = scenes.picture(name, columns, n, dt, "train", seed, pixels)[frames]
        seen = scenes.film(name, columns, n, dt, "train", seed).luminance[frames]
        extent = camera.shape[2] / pixels / 2, camera.shape[1] / pixels / 2
        top = 0.965 - row * height
        for k in range(len(frames)):
            x = left + k * width
            upper = figure.add_axes([x, top - 0.48 * height, width - gap, 0.455 * height])
            upper.imshow(
                camera[k],
                cmap="gray",
                vmin=0,
                vmax=1,
                extent=(-extent[0], extent[0], extent[1], -extent[1]),
                interpolation="bilinear",
            )
            upper.set_xlim(-reach[0], reach[0])
            upper.set_ylim(reach[1], -reach[1])
            upper.axis("off")
            lower = figure.add_axes([x, top - 0.95 * height, width - gap, 0.455 * height])
            draw_hexagons(lower, columns, seen[k], cmap="gray", low=0, high=1, squeeze=1.0)
            if row == 0:
                upper.set_title(
                    f"{seconds[k]:.1f} s", fontsize=7, fontweight="normal", color=MUTED, loc="center", pad=2
                )
        figure.text(
            0.012, top - 0.47 * height, name, rotation=90, ha="center", va="center", fontsize=9, fontweight="bold"
        )
    return _save(figure, path, "L")
