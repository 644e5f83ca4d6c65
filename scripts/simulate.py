"""Simulate the circuit under a stimulus and draw its activity."""

from __future__ import annotations

from _cli import Figures, make_app, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/simulate.py --show\n
  python scripts/simulate.py --visual-input-type moving_edges --show\n
  python scripts/simulate.py --visual-input-type optical_flow --show\n
  python scripts/simulate.py --extent 8 --noise 0.05 --save\n
  python scripts/simulate.py --protocol flashes --parameters flow/0000/000\n
  python scripts/simulate.py --protocol flashes --extent 3 --set radius=2\n
  python scripts/simulate.py --strip experiments/results/scenes.png\n
  python scripts/simulate.py --compare scenes_flow --compare DAVIS
"""


@app.command(epilog=EXAMPLES)
def main(
    extent: Annotated[
        int | None,
        typer.Option(help="Hexagonal radius, columns: 0 to 15. Default: 3, and 8 for --strip and --protocol."),
    ] = None,
    visual_input_type: Annotated[
        str,
        typer.Option(
            help="Stimulus by name: DAVIS, optical_flow, scenes_texture, scenes_flow, scenes_edges, flashes, "
            "moving_edges, gratings, m_sequence, white_noise, blank, video (own ones), or a mixture a:0.7+b:0.3."
        ),
    ] = "scenes_flow",
    n_frames: Annotated[int, typer.Option(help="Frames, one integration step each.")] = 1000,
    dt: Annotated[
        float | None, typer.Option(help="Step and frame interval, s. Default: 0.02, and 0.005 for --protocol.")
    ] = None,
    noise: Annotated[float, typer.Option(help="Process noise, std per step.")] = 0.0,
    connectome: Annotated[
        Path | None, typer.Option(help="Circuit of your own: a folder with tables of neurons and edges.")
    ] = None,
    parameters: Annotated[
        str, typer.Option(help="sampled, flow/0000/000, a flyvis checkpoint, or an .npz or folder of your own values.")
    ] = "sampled",
    parameters_seed: Annotated[int, typer.Option(help="Of sampled parameters.")] = 0,
    solver: Annotated[
        str, typer.Option(help="euler, or a noise-free one: heun, midpoint, ralston, bosh3, tsit5, dopri5, dopri8.")
    ] = "euler",
    initial: Annotated[str, typer.Option(help="Start: grey, rest or fade_in.")] = "grey",
    seed: Annotated[int, typer.Option(help="Of stimulus and noise.")] = 0,
    split: Annotated[
        str, typer.Option(help="train or test: other videos, other scenes. A test is noise-free and starts grey.")
    ] = "train",
    frame_rate: Annotated[
        str, typer.Option(help="Of videos: native (one frame per step), resampled (at their own speed) or default.")
    ] = "default",
    data_path: Annotated[
        Path | None, typer.Option(help="Folder of the videos, or a film. Default: FLYJAX_DATA.")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Show a built-in scene where the data set is missing.")
    ] = False,
    show: Annotated[
        bool,
        typer.Option(
            "--show", help="Draw: hexagonal maps, film strip, kinographs, traces of all types, film (gif, mp4)."
        ),
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the recording, in the folder of --out.")] = False,
    voltage_dtype: Annotated[
        str, typer.Option(help="float32 or float16, as --save stores training voltages.")
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write; draws as --show does. Default: runs/simulate-<stimulus>-<extent>."),
    ] = None,
    strip: Annotated[
        Path | None,
        typer.Option(
            help="Instead: draw the built-in scenes beside what the eye sees of them (PNG), print their statistics."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Instead: print what is identifiable under this stimulus beside its statistics; repeatable."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Instead: measure tuning, moving_edges (direction and orientation selectivity), flashes "
            "(flash response index) or white_noise (receptive fields)."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Of --protocol: KEY=VALUE, e.g. speeds=[9.7,19] or radius=3; repeatable."),
    ] = None,
    figures: Figures = None,
):
    """Simulate, print a summary of the activity (rank, SNR), draw it and store it."""
    from flyjax.cli.console import Console
    from flyjax.cli.fallbacks import apply_stimulus_fallbacks
    from flyjax.config import Experiment, parse_experiment
    from flyjax.experiments import simulate
    from flyjax.utils.errors import UserError

    console = Console()
    if settings and protocol is None:
        raise UserError("--set changes the settings of a protocol: give --protocol too")
    step = dt or 0.02
    if extent is None:
        extent = 3 if strip is None and protocol is None else 8
    given = dict(
        extent=extent, visual_input_type=visual_input_type, n_frames=n_frames, n_test_frames=n_frames, delta_t=step,
        parameters=parameters, parameters_seed=parameters_seed, solver=solver, initial=initial, seed=seed,
        frame_rate=frame_rate, voltage_dtype=voltage_dtype, data_path=None if data_path is None else str(data_path),
        test_visual_input_type=visual_input_type, connectome=None if connectome is None else str(connectome),
    )  # fmt: skip
    free = {"ranges": {}, "simulation_ranges": {}}
    experiment: Experiment = parse_experiment({"simulation": given, "search": free}, "simulate")
    if strip is not None:
        from flyjax.circuit import lattice
        from flyjax.report.figures.films import scenes_figure

        columns = lattice(extent)
        console.table(
            simulate.film_statistics(columns, step, seed=seed),
            ["stimulus", "mean", "contrast", "frame_contrast", "temporal_slope"],
        )
        path = scenes_figure(strip, columns, seed=seed, dt=step)
        console.log(f"{path}  ({path.stat().st_size / 1000:,.0f} kB)")
        return
    if protocol is not None:
        from flyjax.experiments import tuning

        chosen = tuning.settings_of(protocol, settings or (), dt)
        folder = out or Path("runs") / f"simulate-{protocol}-{extent}"
        tuning.measure_ground_truth(experiment.simulation, protocol, chosen, folder, console)
        return
    if compare:
        rows = simulate.compare_stimuli(experiment.simulation, compare, noise)
        console.table(rows, list(simulate.COMPARED))
        return
    experiment, _, used = apply_stimulus_fallbacks(experiment, allow_fallback)
    for missing, name in used.items():
        console.log(f"{missing} is not on this machine: replaced by {name}")
    simulation = experiment.simulation
    name = simulation.visual_input_type.replace(":", "").replace("+", "-")
    folder = out or Path("runs") / f"simulate-{name}-{extent}"
    simulate.show(simulation, noise, split, folder, show or out is not None, save, console)


if __name__ == "__main__":
    run(app)
