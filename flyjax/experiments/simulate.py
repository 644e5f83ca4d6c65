"""What scripts/simulate.py does: simulate once, say what came out, draw it."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from flyjax import stimulus
from flyjax.config import Simulation
from flyjax.data import Recording, record
from flyjax.ground_truth import build_ground_truth
from flyjax.recovery.activity import recording_activity
from flyjax.report.figures import films, hexmaps, kinograph, traces
from flyjax.report.figures.hexagons import VoltageMaps, most_eventful_frame
from flyjax.stimulus import scenes
from flyjax.stimulus.statistics import photographs, statistics
from flyjax.utils.array_store import store_bytes
from flyjax.utils.errors import UserError


def peak_memory_gb() -> float:
    """Most memory this process has held."""
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def film_statistics(columns, dt: float, n_frames: int = 6000, seed: int = 0) -> list[dict]:
    """Rows of brightness, contrast and speed: the built-in scenes beside photographs."""
    rows = [
        {"stimulus": name, **statistics(stimulus.luminance(name, columns, n_frames, dt, "train", seed), dt)}
        for name in scenes.NAMES
    ]
    return [*rows, {"stimulus": "photographs (two, of scikit-learn)", **statistics(photographs(columns))}]


def summary(recording: Recording) -> list[dict]:
    """What was simulated, what was seen and how lively the fly is: rows of quantity and value."""
    c, seen = recording.ground_truth[0], statistics(recording.luminance, recording.dt)
    live = recording_activity(recording)
    none = "none"

    def number(x, form="{:.3g}"):
        return none if x is None else form.format(x)

    rows = {
        "circuit": f"extent {c.extent}: {c.n_neurons:,} neurons, {c.n_edges:,} edges",
        "frames": f"{recording.n_frames:,} of {recording.dt * 1000:g} ms, {recording.visual_input_type}",
        "luminance": f"mean {seen['mean']:.2f}, contrast {seen['contrast']:.2f} ({seen['frame_contrast']:.2f} within a frame)",
        "temporal slope": number(seen["temporal_slope"], "{:.2f}"),
        "voltage": f"mean {live['mean']:.2f}, std {live['std']:.3f}",
        "activity rank": f"{number(live['rank'])} components hold 99 % of the variance",
        "participation ratio": number(live["participation_ratio"]),
        "never above zero": f"{live['silent']:.1%} of the neurons",
        "always above zero": f"{live['always_active']:.1%} of the neurons",
        "SNR": "noise-free" if live["snr"] is None else number(live["snr"]),
    }
    return [{"quantity": k, "value": v} for k, v in rows.items()]


def true_flow(recording: Recording):
    """(T, n_col, 2) of the frames that were shown, or None where it is not known."""
    s = recording.simulation
    seed = s.seed + 1_000_003 * recording.seed
    try:
        return stimulus.flow(
            recording.visual_input_type,
            recording.connectome.columns,
            recording.n_frames,
            s.delta_t,
            recording.split,
            seed,
            s.data_path,
            s.frame_rate,
        )
    except UserError:
        return None


def draw(recording: Recording, folder: Path, say=lambda text: None) -> list[Path]:
    """maps.png, strip.png, kinograph.png, traces.png, film.gif and, where ffmpeg is at hand, film.mp4."""
    folder, maps = Path(folder), VoltageMaps(recording)
    # What changes within a window around the most eventful frame.
    first = int(max(0, min(most_eventful_frame(recording.luminance) - 125, recording.n_frames - 250)))
    paths = [
        hexmaps.maps_figure(folder / "maps.png", maps),
        hexmaps.strip_figure(folder / "strip.png", maps, flow=true_flow(recording)),
        kinograph.kinograph_figure(folder / "kinograph.png", maps, first),
        traces.traces_figure(folder / "traces.png", recording, first),
    ]
    film = films.film_frames(maps, first)
    paths += [
        films.write_gif(folder / "film.gif", film, recording.dt),
        films.write_mp4(folder / "film.mp4", film, recording.dt),
    ]
    for path in filter(None, paths):
        say(f"{path}  ({path.stat().st_size / 1000:,.0f} kB)")
    return [p for p in paths if p is not None]


def show(
    simulation: Simulation, noise: float, split: str, out: Path | None, pictures: bool, save: bool, console
) -> Recording:
    """Simulate, print the summary, and write what is asked for into `out`."""
    build_ground_truth(simulation)  # not part of what is timed
    begin = time.perf_counter()
    recording = record(simulation, noise, split, store=out / "recording" if save else None)
    seconds = time.perf_counter() - begin
    cost = f"{seconds:.1f} s with compilation, {recording.n_frames / seconds:,.0f} frames/s, peak memory {peak_memory_gb():.2f} GB"
    console.table([*summary(recording), {"quantity": "cost", "value": cost}], ["quantity", "value"])
    if save:
        path = out / "recording"
        console.log(f"recording in {path} ({store_bytes(path) / 1e9:.2f} GB); flyjax.load_recording reads it")
    if pictures:
        draw(recording, out, console.log)
    return recording
