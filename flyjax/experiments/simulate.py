"""Simulate once, summarise the activity and draw it: the work of scripts/simulate.py."""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from flyjax import stimulus
from flyjax.config import Simulation
from flyjax.data import Recording, record
from flyjax.data.recorder import render_stimulus
from flyjax.ground_truth import build_ground_truth
from flyjax.recovery.activity import recording_activity
from flyjax.recovery.closed_form import closed_form
from flyjax.report.figures import films, hexmaps, traces
from flyjax.stimulus import scenes
from flyjax.stimulus.statistics import photographs, statistics
from flyjax.utils.array_store import store_bytes
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import RunDirectory
from flyjax.utils.system import peak_memory_gb


def film_statistics(columns, dt: float, n_frames: int = 6000, seed: int = 0) -> list[dict]:
    """Rows of brightness, contrast and speed: the built-in scenes beside photographs."""
    rows = [
        {"stimulus": name, **statistics(stimulus.luminance(name, columns, n_frames, dt, "train", seed), dt)}
        for name in scenes.NAMES
    ]
    return [*rows, {"stimulus": "photographs (two, of scikit-learn)", **statistics(photographs(columns))}]


#: Columns of `compare_stimuli`.
COMPARED = (
    "stimulus", "identifiable edges", "identifiable neurons", "variance of W", "W ceiling", "rank", "participation",
    "mean", "contrast", "frame contrast", "temporal slope", "always above 0", "never above 0",
)  # fmt: skip


def compare_stimuli(simulation: Simulation, names: Iterable[str], noise: float) -> list[dict]:
    """One row per training stimulus: what the closed form can identify, the activity, and the film itself."""
    rows = []
    for name in names:
        recording = record(simulation.model_copy(update={"visual_input_type": name}), noise)
        film, activity = statistics(recording.luminance, recording.dt), recording_activity(recording)
        bound = closed_form(recording).metrics
        values = [
            *(bound[f"identifiable_{part}"] for part in ("edges", "neurons", "weight_variance")),
            bound["connectivity_R2_ceiling"],
            *(activity[key] for key in ("rank", "participation_ratio")),
            *(film[key] for key in ("mean", "contrast", "frame_contrast", "temporal_slope")),
            *(activity[key] for key in ("always_active", "silent")),
        ]
        cells = ("none" if value is None else f"{value:.3g}" for value in values)
        rows.append(dict(zip(COMPARED, [name, *cells], strict=True)))
    return rows


def summary(recording: Recording) -> list[dict]:
    """Rows of quantity and value: the circuit, the stimulus and the activity."""
    c, film = recording.ground_truth[0], statistics(recording.luminance, recording.dt)
    activity = recording_activity(recording)

    def number(x, form="{:.3g}"):
        return "none" if x is None else form.format(x)

    rows = {
        "circuit": f"extent {c.extent}: {c.n_neurons:,} neurons, {c.n_edges:,} edges",
        "frames": f"{recording.n_frames:,} of {recording.dt * 1000:g} ms, {recording.visual_input_type}",
        "luminance": f"mean {film['mean']:.2f}, contrast {film['contrast']:.2f} "
        f"({film['frame_contrast']:.2f} within a frame)",
        "temporal slope": number(film["temporal_slope"], "{:.2f}"),
        "voltage": f"mean {activity['mean']:.2f}, std {activity['std']:.3f}",
        "activity rank": f"{number(activity['rank'])} components hold 99 % of the variance",
        "participation ratio": number(activity["participation_ratio"]),
        "never above zero": f"{activity['silent']:.1%} of the neurons",
        "always above zero": f"{activity['always_active']:.1%} of the neurons",
        "SNR": "noise-free" if activity["snr"] is None else number(activity["snr"]),
    }
    return [{"quantity": k, "value": v} for k, v in rows.items()]


def true_flow(recording: Recording):
    """Optic flow (T, n_col, 2) of the stimulus, or None if it is not known."""
    what = recording.simulation, recording.visual_input_type, recording.connectome, recording.all_parts[0]
    try:
        return render_stimulus(*what, recording.split, "flow")
    except UserError:
        return None


def draw(recording: Recording, folder: Path, log=lambda text: None) -> list[Path]:
    """Draw maps.png, strip.png, kinograph.png, traces.png, film.gif and, if ffmpeg is installed, film.mp4.

    Of a circuit without columns only the traces, for there is no map of it.
    """
    folder, maps = Path(folder), hexmaps.VoltageMaps(recording)
    # 250 frames around the most eventful one.
    first = int(max(0, min(hexmaps.most_eventful_frame(recording.luminance) - 125, recording.n_frames - 250)))
    paths: list[Path | None] = [traces.traces_figure(folder / "traces.png", recording, first)]
    if recording.connectome.has_columns:
        film = films.film_frames(maps, first)
        paths = [
            hexmaps.maps_figure(folder / "maps.png", maps),
            hexmaps.strip_figure(folder / "strip.png", maps, flow=true_flow(recording)),
            hexmaps.kinograph_figure(folder / "kinograph.png", maps, first),
            *paths,
            films.write_gif(folder / "film.gif", film, recording.dt),
            films.write_mp4(folder / "film.mp4", film, recording.dt),
        ]
    drawn = [path for path in paths if path is not None]
    for path in drawn:
        log(f"{path}  ({path.stat().st_size / 1000:,.0f} kB)")
    return drawn


def show(simulation: Simulation, noise: float, split: str, out: Path, pictures: bool, save: bool, console) -> Recording:
    """Simulate, print the summary, and write the recording and figures that are asked for into `out`."""
    build_ground_truth(simulation)  # not part of what is timed
    with RunDirectory(out, "simulation") if save or pictures else contextlib.nullcontext():
        begin, path = time.perf_counter(), out / "recording" if save else None
        recording = record(simulation, noise, split, store=path)
        seconds = time.perf_counter() - begin
        cost = (
            f"{seconds:.1f} s with compilation, {recording.n_frames / seconds:,.0f} frames/s, "
            f"peak memory {peak_memory_gb():.2f} GB"
        )
        console.table([*summary(recording), {"quantity": "cost", "value": cost}], ["quantity", "value"])
        if path is not None:
            console.log(f"recording in {path} ({store_bytes(path) / 1e9:.2f} GB); flyjax.load_recording reads it")
        if pictures:
            draw(recording, out, console.log)
    return recording
