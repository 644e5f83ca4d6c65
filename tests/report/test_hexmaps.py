"""Pictures of the fly's view: the right hexagon in the right place and colour, and files that open."""

import warnings

import jax
import numpy as np
import pytest
from PIL import Image
from support.torch_zip import flyvis_checkpoint

from flyjax.circuit import Parameters, build_connectome, lattice
from flyjax.config import Simulation
from flyjax.data.recording import Recording
from flyjax.experiments import simulate
from flyjax.report.figures import films
from flyjax.report.figures.hexmaps import VoltageMaps, hexagon_centres, midline_columns
from flyjax.stimulus import video


@pytest.fixture(scope="module")
def made_up():
    """A recording whose every value is known: v = type + amplitude * (luminance - 0.5), no simulation."""
    c = build_connectome(2)
    n = 120
    luminance = np.full((n, c.n_columns), 0.5, np.float32)
    bright = int(np.flatnonzero((c.columns == [1, -2]).all(axis=1))[0])
    luminance[60:80, bright] = 1.0
    amplitude = (1 + np.arange(c.n_types)) * 0.01
    voltage = (c.cell_type + amplitude[c.cell_type] * (luminance[:, c.column] - 0.5)).astype(np.float32)
    simulation = Simulation(extent=2, visual_input_type="white_noise", n_frames=n)
    p = Parameters(
        np.zeros(c.n_edges, np.float32), np.full(c.n_neurons, 0.1, np.float32), np.zeros(c.n_neurons, np.float32)
    )
    return Recording(voltage, luminance, voltage[-1], c, p, simulation, 0.0, "train", 0, "white_noise"), bright


def test_maps_are_deviations_in_units_of_the_type(made_up):
    rec, bright = made_up
    maps_of, c = VoltageMaps(rec), rec.connectome
    t = c.cell_types.index("T4a")
    maps = maps_of.maps(t, [10, 70])
    others = np.delete(np.arange(c.n_columns), bright)
    assert np.nanargmax(maps[1]) == bright and maps[1, bright] > 0.5 and np.abs(maps[:, others]).max() < 1e-3
    rise = (maps[1] - maps[0])[bright] * maps_of._statistics(t)[2]
    np.testing.assert_allclose(rise, (1 + t) * 0.01 * 0.5, rtol=1e-3)
    stride = maps_of.maps(c.cell_types.index("Lawf1"), [0])[0]
    assert np.isnan(stride).sum() == c.n_columns - np.sum(c.cell_type == c.cell_types.index("Lawf1")) > 0


def test_the_midline_goes_from_left_to_right():
    c = build_connectome(3)
    row = midline_columns(c)
    at = hexagon_centres(c.columns)[row]
    assert len(row) == 7 and (np.diff(at[:, 0]) > 0.8).all() and (np.abs(at[:, 1]) <= 0.5).all()


def test_the_raster_has_each_column_at_its_place():
    columns = lattice(2)
    raster = films.column_of_pixel(np.ascontiguousarray(columns, np.int64).tobytes(), 200)
    at = hexagon_centres(columns)
    middle = np.array([[np.argwhere(raster == k)[:, d].mean() for d in (1, 0)] for k in range(len(columns))])
    fit = np.linalg.lstsq(np.column_stack([at, np.ones(len(at))]), middle, rcond=None)[0]
    np.testing.assert_allclose(np.column_stack([at, np.ones(len(at))]) @ fit, middle, atol=1.5)
    assert fit[0, 0] > 20 and fit[1, 1] > 20 and abs(fit[0, 1]) + abs(fit[1, 0]) < 0.2
    size = np.bincount(raster.ravel())[: len(columns)]
    assert size.min() > 0.85 * size.max() and raster[0, 0] == len(columns)


def test_every_picture_is_drawn_and_the_film_shows_the_flash(made_up, tmp_path):
    rec, bright = made_up
    paths = simulate.draw(rec, tmp_path)
    names = {p.name for p in paths}
    assert {"maps.png", "strip.png", "kinograph.png", "traces.png", "film.gif"} <= names
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            assert (
                pixels.shape[1] > 900 and 0.3 < (pixels == 255).all(-1).mean() < 0.97 and path.stat().st_size < 700_000
            )
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 119 and gif.info["duration"] == 40
        tile = {}
        for k in (10, 70):
            gif.seek(k)
            tile[k] = np.asarray(gif.convert("L"), int)[films.LABEL : films.LABEL + films.TILE, 12 : 12 + films.TILE]
    raster = films.column_of_pixel(np.ascontiguousarray(rec.connectome.columns, np.int64).tobytes(), films.TILE)
    changed = np.abs(tile[70] - tile[10])[:, : raster.shape[1]]
    inside = raster[:, : changed.shape[1]] == bright
    assert changed[inside].mean() > 80 and changed[~inside].mean() < 6


def test_a_film_has_a_clock_and_the_scale_of_its_colours(made_up):
    film = films.film_frames(VoltageMaps(made_up[0]), 0, 60)
    footer = film[:, -36:].astype(int)
    clock = footer[:, :-10, film.shape[2] // 2 + 20 :]
    assert all((clock[k] != clock[k + 1]).any() for k in range(len(film) - 1)), "it runs"
    bar = footer[0, :, : film.shape[2] // 2]
    red, blue = bar[..., 0] - bar[..., 2] > 100, bar[..., 2] - bar[..., 0] > 60
    assert red.any() and blue.any() and np.argwhere(blue)[:, 1].max() < np.argwhere(red)[:, 1].min()
    assert (footer[:, :, : film.shape[2] // 2][:, :20] == footer[0, :20, : film.shape[2] // 2]).all()


def test_a_film_compares_learned_with_true(made_up):
    recording = made_up[0]
    camera = np.linspace(0, 1, 5)[:, None, None] * np.ones((5, 8, 8))
    same, other = (
        films.comparison_frames(VoltageMaps(recording), voltage, camera, ("L1", "Mi1"), 3)
        for voltage in (recording.voltage, recording.voltage + 1.0)
    )
    above, below = (
        slice(films.LABEL + k * (films.TILE + 8), films.LABEL + k * (films.TILE + 8) + films.TILE) for k in (0, 1)
    )
    types = slice(same.shape[2] // 2, None)
    assert np.array_equal(same[:, above, types], same[:, below, types])
    assert np.array_equal(same[:, above], other[:, above]), "the true row does not depend on what was learned"
    shift = other[:, below, types].astype(int) - same[:, below, types]
    assert shift[..., 2].min() < -50, "higher voltages are red: less blue"
    assert np.all(np.diff(same[:, above.start + 60, 80, 0].astype(int)) > 50), "the video gets brighter"


def test_films_are_written_and_read_without_a_warning(made_up, tmp_path):
    """JAX warns of every fork of its process, once it has started."""
    pytest.importorskip("imageio_ffmpeg")
    jax.devices()
    film = films.film_frames(VoltageMaps(made_up[0]), 0, 10)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        path = films.write_mp4(tmp_path / "film.mp4", film, 0.02)
    with warnings.catch_warnings(record=True) as seen_by_reader:
        warnings.simplefilter("always")
        assert len(list(video.frames(path))) == 10
    assert not [w for w in [*seen, *seen_by_reader] if "fork" in str(w.message)]


def test_the_strip_of_the_scenes(tmp_path):
    path = films.scenes_figure(tmp_path / "scenes.png", lattice(3), seconds=(0.2, 0.6))
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert path.stat().st_size < 300_000 and len(np.unique(pixels)) > 20 and pixels.std() > 30


def test_the_command_simulates_draws_and_saves(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A made-up checkpoint: sampled parameters would be calibrated for a while.
    (tmp_path / "model").write_bytes(flyvis_checkpoint(edges_syn_strength=np.full(604, 1e-3)))
    simulation = ["--extent", 0, "--parameters", "model", "--n-frames", 60, "--visual-input-type", "flashes"]
    code, out, errors = script("simulate", *simulation, "--noise", 0.05, "--save", "--out", "fly")
    assert code == 0, errors
    assert "activity rank" in out and "SNR" in out
    assert {"maps.png", "film.gif", "recording"} <= {p.name for p in (tmp_path / "fly").iterdir()}
    code, _, errors = script("simulate", "--visual-input-type", "optical_flow", "--show")
    assert code == 2 and "Sintel" in errors and errors.count("\n") == 1
