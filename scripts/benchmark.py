"""Measure the speed of flyjax relative to the limits of this machine."""

from __future__ import annotations

import json
import time
from _cli import ROOT, Coordinator, Distributed, Process, Processes, Settings, make_app, run
from pathlib import Path
from typing import Annotated

import typer

app = make_app()

EXAMPLES = """
Examples:

  python scripts/benchmark.py simulate\n
  python scripts/benchmark.py simulate --extent 8 --json simulate.json\n
  python scripts/benchmark.py train --extent 1 --candidates 4 --width 32\n
  python scripts/benchmark.py scale --processes 1 --processes 2 --lanes 4\n
  python scripts/benchmark.py profile --extent 8 --rows 2048\n
  python scripts/benchmark.py judge --extent 8 --frames 64000\n
  python scripts/benchmark.py full experiments/full_scale.yaml --nodes 2\n
  python scripts/benchmark.py accelerator --json accelerator.json
"""


@app.callback(epilog=EXAMPLES)
def main() -> None:
    """Benchmarks: each prints a table and, with --json, writes a list of rows."""


def best_time(call, seconds: float, at_least: int = 3) -> float:
    """Shortest of several runs, s; the first, which compiles, is not counted."""
    call()
    times, begin = [], time.perf_counter()
    while len(times) < at_least or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth(n_bytes: int, seconds: float = 0.3) -> float:
    """Bytes/s of a loop that reads and writes as much as one step does, at the same size."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones((max(n_bytes // 8, 1),), jnp.float32)
    n = max(4, int(2e8 / n_bytes))
    loop = jax.jit(
        lambda x: jax.lax.fori_loop(0, n, lambda _, x: jax.lax.optimization_barrier(x * jnp.float32(0.999)), x)
    )
    return 8 * array.size * n / best_time(lambda: loop(array).block_until_ready(), seconds)


def bytes_per_step(connectome, batch: int) -> int:
    """What a step over an edge list must move: a sender and a weight per edge, and the states three times.

    The sums over shifted rows read no edge list, so that this is no limit to them; it is the same
    yardstick for all.
    """
    return 8 * connectome.n_edges + 3 * 4 * connectome.n_neurons * batch


def simulate_row(extent: int, batch: int, noise: float, n_frames: int, kernel: str, seconds: float) -> dict:
    """One row: simulate as recordings do, end to end, against the floor of its memory traffic."""
    import jax
    import numpy as np

    from flyjax import circuit, simulation
    from flyjax.experiments.benchmark import provenance
    from flyjax.ground_truth.sampling import sample_type_parameters
    from flyjax.simulation import kernels

    c = circuit.build_connectome(extent)
    types = sample_type_parameters(c, 0)
    # Biased as far as the calibration would on average; speed does not depend on it.
    p = circuit.expand(c, np.full(c.n_types, 0.1, np.float32), types.tau, types.syn_strength)
    # The kernel that a recording of n_frames would take, timed over fewer of them.
    name = kernels.choose(c, p.weight, False, n_frames, batch, kernel).name
    short = max(64, min(n_frames, int(4e7 / (c.n_neurons * batch))))
    light = np.random.default_rng(0).uniform(0, 1, (batch, short, c.n_columns)).astype(np.float32)
    light = jax.numpy.asarray(light if batch > 1 else light[0])
    key = jax.random.key(0)
    start = simulation.steady_state(c, p)

    def call():
        simulation.simulate(c, p, light, noise=noise, key=key, initial=start, kernel=name).block_until_ready()

    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    step = best_time(call, seconds) / short
    n_bytes = bytes_per_step(c, batch)
    rate = bandwidth(n_bytes)
    return {
        "benchmark": "simulate",
        "extent": extent,
        "batch": batch,
        "noise": noise,
        "neurons": c.n_neurons,
        "edges": c.n_edges,
        "kernel": name,
        "steps_per_s": 1 / step,
        "sequence_steps_per_s": batch / step,
        "first_call_s": first,
        "bytes_per_step": n_bytes,
        "bandwidth_gb_s": rate / 1e9,
        "floor_steps_per_s": rate / n_bytes,
        "share_of_floor": n_bytes / rate / step,
        **provenance(),
    }


@app.command(epilog=EXAMPLES)
def simulate(
    extent: Annotated[list[int] | None, typer.Option(help="0 to 15; repeatable.", show_default="1, 3, 8, 15")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Sequences at once; repeatable.", show_default="1, 8, 32")
    ] = None,
    noise: Annotated[float, typer.Option(help="Process noise, std per step.", min=0)] = 0.0,
    frames: Annotated[
        int, typer.Option(help="Length of the recording in mind: long ones may take another kernel.", min=1)
    ] = 64_000,
    kernel: Annotated[str, typer.Option(help="auto, segment, gather, csr or window.")] = "auto",
    seconds: Annotated[float, typer.Option(help="Time spent on each row after compilation.", min=0)] = 3.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Steps per second of the simulator, beside the floor: bytes per step over measured bandwidth."""
    from rich.console import Console

    from flyjax.utils.errors import UserError

    if any(b < 1 for b in batch or ()):
        raise UserError(f"--batch must be at least 1, got {min(batch)}")
    console, rows = Console(), []
    for x in extent or (1, 3, 8, 15):
        for b in batch or (1, 8, 32):
            with console.status(f"extent {x}, batch {b}"):
                rows.append(simulate_row(x, b, noise, frames, kernel, seconds))
    title = "simulate\nx batch: sequence-steps/s; floor: steps/s at the measured GB/s; first: call with compilation, s"
    cells = {
        "extent": "{extent}",
        "batch": "{batch}",
        "kernel": "{kernel}",
        "steps/s": "{steps_per_s:,.0f}",
        "x batch": "{sequence_steps_per_s:,.0f}",
        "floor": "{floor_steps_per_s:,.0f}",
        "share": "{share_of_floor:.0%}",
        "GB/s": "{bandwidth_gb_s:.1f}",
        "first": "{first_call_s:.1f}",
    }
    show(console, title, cells, rows, json_file)


def show(console, title: str, cells: dict[str, str], rows: list[dict], path: Path | None) -> None:
    """Print rows as a table, `cells` by head, with what they were measured on; write them where a file is named."""
    from rich.box import SIMPLE
    from rich.table import Table

    first = rows[0]
    made = f"{first['hardware']}, {first['device']}, JAX {first['jax']}, load {rows[-1]['load']}, {first['date']}"
    table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True, caption=made)
    for head in cells:
        table.add_column(head, justify="left" if head in ("kernel", "part") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.format(**row) for cell in cells.values()))
    console.print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {path}")


@app.command(epilog=EXAMPLES)
def train(
    extent: Annotated[list[int] | None, typer.Option(help="0 to 15; repeatable.", show_default="1")] = None,
    candidates: Annotated[int, typer.Option(help="K, candidates at once.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Trainings of each candidate.", min=1)] = 1,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Frames per step; repeatable.", show_default="1, 4")
    ] = None,
    width: Annotated[int, typer.Option(help="Width of both networks.", min=2)] = 80,
    repeats: Annotated[int, typer.Option(help="Timed chunks of 250 steps; the best counts.", min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    process: Process = None,
    processes: Processes = None,
) -> None:
    """Training frames per second, regularisers at every step, beside the matrix-product rate of the same run."""
    from _cli import connect, prepare_devices

    prepare_devices()
    connect(distributed, coordinator, process, processes, False)
    from rich.console import Console

    from flyjax.experiments.benchmark import matmul_gflops, provenance, train_row

    console, rows = Console(), []
    with console.status("measuring the matrix-product rate"):
        peak = matmul_gflops()
    for x in extent or (1,):
        for b in batch_size or (1, 4):
            with console.status(f"extent {x}, batch size {b}"):
                rows.append({**train_row(x, candidates, seeds, b, width, repeats=repeats, peak=peak), **provenance()})
    title = f"train, width {width}, {candidates} candidates x {seeds} seeds; peak {peak:.0f} GFLOP/s"
    cells = {
        "extent": "{extent}",
        "batch": "{batch_size}",
        "frames/s": "{frames_per_s:,.0f}",
        "ms/step": "{ms_per_step:.2f}",
        "GFLOP": "{gflop_per_frame:.3g}",
        "of peak": "{share_of_peak:.0%}",
        "compile s": "{compile_s:.1f}",
        "peak GB": "{peak_memory_gb:.2f}",
    }
    show(console, title, cells, rows, None if process else json_file)


@app.command(epilog=EXAMPLES)
def scale(
    processes: Annotated[list[int] | None, typer.Option(help="Repeatable.", min=1, show_default="1, 2, 4")] = None,
    lanes: Annotated[int, typer.Option(help="Trainings of each process, or in all.", min=1)] = 4,
    extent: Annotated[int, typer.Option(help="0 to 15.", min=0, max=15)] = 1,
    batch_size: Annotated[int, typer.Option(help="Frames per step.", min=1)] = 4,
    width: Annotated[int, typer.Option(help="Width of both networks.", min=2)] = 32,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Weak and strong scaling over processes on this machine: trained frames per second, and the share of ideal."""
    from _cli import prepare_devices

    from rich.console import Console

    prepare_devices()
    from flyjax.experiments.benchmark import scale_rows

    cells = {
        "scaling": "{scaling}",
        "processes": "{processes}",
        "lanes": "{candidates}",
        "frames/s": "{frames_per_s:,.0f}",
        "of ideal": "{efficiency:.0%}",
        "peak GB": "{peak_memory_gb:.2f}",
    }
    rows = scale_rows(__file__, processes or (1, 2, 4), lanes, extent, batch_size, width)
    show(Console(), f"scale, extent {extent}, batch {batch_size}, width {width}", cells, rows, json_file)


@app.command(epilog=EXAMPLES)
def profile(
    extent: Annotated[int, typer.Option(help="0 to 15.", min=0, max=15)] = 8,
    batch_size: Annotated[int, typer.Option(help="Frames per step.", min=1)] = 4,
    width: Annotated[int, typer.Option(help="Width of both networks.", min=2)] = 80,
    rows: Annotated[
        int | None, typer.Option(help="Neurons x frames of one segment, instead of the size for this backend.", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each part; the shortest counts.", min=1)] = 7,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Where the time of one training step goes, part by part."""
    from rich.console import Console

    from flyjax.experiments.benchmark import profile_rows, provenance

    console = Console()
    parts = [{**row, **provenance()} for row in profile_rows(extent, batch_size, width, repeats, rows)]
    title = f"one step, extent {extent}, batch {batch_size}, width {width}"
    show(console, title, {"part": "{part}", "ms": "{ms:.2f}", "CPU ms, all threads": "{cpu_ms:.2f}"}, parts, json_file)


@app.command(epilog=EXAMPLES)
def judge(
    extent: Annotated[int, typer.Option(help="0 to 15.", min=0, max=15)] = 1,
    frames: Annotated[int, typer.Option(help="Of the training recording.", min=64)] = 4000,
    width: Annotated[int, typer.Option(help="Width of both networks.", min=2)] = 32,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Seconds of each part of the evaluation of one network, beside the arithmetic and the bytes it needs."""
    from _cli import prepare_devices

    prepare_devices()
    from rich.console import Console

    from flyjax.experiments.benchmark import judge_rows, provenance

    rows = [{**row, **provenance()} for row in judge_rows(extent, frames, width)]
    cells = {
        "part": "{part}",
        "first s": "{first_s:.2f}",
        "s": "{seconds:.2f}",
        "CPU s": "{cpu_s:.2f}",
        "GFLOP": "{gflop:.1f}",
        "GB": "{gigabytes:.2f}",
    }
    show(Console(), f"evaluation, extent {extent}, {frames} frames, width {width}", cells, rows, json_file)


@app.command(epilog=EXAMPLES)
def full(
    config: Annotated[
        Path, typer.Argument(help="Experiment file (YAML).", show_default="experiments/quickstart.yaml")
    ] = ROOT / "experiments" / "quickstart.yaml",
    settings: Settings = None,
    nodes: Annotated[int, typer.Option(help="Trained together; they differ by seed.", min=1)] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Seconds of each stage of the nodes of an experiment, from stimulus to figures, as a search trains them."""
    from _cli import prepare_devices

    prepare_devices()
    from rich.console import Console

    from flyjax.config import load_experiment
    from flyjax.experiments.benchmark import full_rows, provenance

    experiment, console = load_experiment(config, settings), Console()
    with console.status("training and evaluating"):
        rows = [{**row, **provenance()} for row in full_rows(experiment, nodes)]
    first = rows[0]
    title = "{experiment}, extent {extent}, {frames:,} frames, {nodes} nodes of {n_steps:,} steps".format(**first)
    if first["train_frames_per_s"]:
        title += f", {first['train_frames_per_s']:,.0f} training frames/s"
    cells = {"part": "{part}", "s": "{seconds:.2f}", "GFLOP": "{gflop:,.0f}", "GB": "{gigabytes:.1f}"}
    show(console, title, cells, rows, json_file)


@app.command(epilog=EXAMPLES)
def accelerator(
    config: Annotated[
        Path, typer.Argument(help="Experiment file (YAML).", show_default="experiments/full_scale.yaml")
    ] = ROOT / "experiments" / "full_scale.yaml",
    settings: Settings = None,
    nodes: Annotated[int, typer.Option(help="Trained together; they differ by seed.", min=1)] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows here, after each part: a limit loses one part.")
    ] = None,
) -> None:
    """Everything about an accelerator in one call: training in both forms and in bfloat16, and nodes end to end."""
    from _cli import prepare_devices

    prepare_devices()
    from rich.console import Console

    from flyjax.config import load_experiment
    from flyjax.experiments.benchmark import accelerator_rows, provenance
    from flyjax.utils.atomic_io import write_json

    experiment, console, rows = load_experiment(config, settings), Console(), []
    for part in accelerator_rows(experiment, nodes):
        for row in part:
            rows.append({**row, **provenance()})
            console.print("{part}: {seconds:.2f} s, {frames_per_s:,.0f} frames/s".format(**row))
        if json_file is not None:
            write_json(json_file, rows)
    cells = {
        "part": "{part}",
        "s": "{seconds:.2f}",
        "frames/s": "{frames_per_s:,.0f}",
        "GFLOP": "{gflop:,.0f}",
        "GB": "{gigabytes:.1f}",
    }
    show(console, f"{experiment.name}, extent {experiment.simulation.extent}", cells, rows, json_file)


if __name__ == "__main__":
    run(app)
