"""Benchmarks: a training step relative to a matrix product of the same run, and the parts of an evaluation."""

import dataclasses
import datetime
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flyjax.circuit import build_connectome
from flyjax.config import Experiment, Model, Simulation, Training
from flyjax.data import record
from flyjax.experiments.node import NodeSpec, learner_for
from flyjax.experiments.train_nodes import train_nodes
from flyjax.models import Learner, losses, make_learner
from flyjax.models.normal_equations import table_rows
from flyjax.recovery import closed_form, evaluate, extract, linear_readout, refit, rollout
from flyjax.recovery.activity import activity
from flyjax.recovery.clusters import all_cluster_metrics
from flyjax.recovery.readout import N_POINTS
from flyjax.recovery.refit import MAX_FRAMES
from flyjax.training import lanes
from flyjax.training.data import stack_recordings
from flyjax.training.grouping import CHUNK, gflop_per_frame
from flyjax.training.hparams import static_of, traced_hparams
from flyjax.training.optimizer import make_optimizer, unpack
from flyjax.training.step import init_state, train_step
from flyjax.utils import distributed, environment
from flyjax.utils.errors import UserError
from flyjax.utils.format import plural
from flyjax.utils.run_directory import RunDirectory
from flyjax.utils.system import devices, hardware, peak_memory_gb


def provenance() -> dict:
    """Hardware, device, JAX version, load and date of a measurement."""
    found = devices()
    return {
        "hardware": hardware(),
        "device": found["device_kind"],
        "jax": found["versions"]["jax"],
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.date.today().isoformat(),
    }


def best_times(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The shortest wall and CPU seconds of several runs after a first one, which compiles."""
    jax.block_until_ready(call())
    walls, cpus = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        walls.append(time.perf_counter() - start)
        cpus.append(time.process_time() - used)
    return min(walls), min(cpus)


def matmul_gflops(size: int = 4096, repeats: int = 3) -> float:
    """The best rate of a float32 matrix product of that size, GFLOP/s."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / best_times(lambda: product(a), repeats)[0] / 1e9


def _noise(connectome, n_frames: int):
    """A recording of random numbers: the time of a step does not depend on the values."""
    rng = np.random.default_rng(0)
    voltage = rng.normal(size=(n_frames, connectome.n_neurons)).astype(np.float32)
    return SimpleNamespace(
        voltage=voltage,
        derivative=rng.normal(size=voltage.shape).astype(np.float32),
        luminance=rng.uniform(size=(n_frames, connectome.n_columns)).astype(np.float32),
    )


def train_row(
    extent: int,
    candidates: int,
    seeds: int,
    batch_size: int,
    width: int,
    n_frames: int = 256,
    repeats: int = 3,
    peak: float | None = None,
    **settings,
) -> dict:
    """One row of `scripts/benchmark.py train`: the complete training step, with regularisers, of all processes.

    **Arguments:** `settings`: of the model, beside its width.
    """
    connectome = build_connectome(extent)
    model = Model(width=width, **settings)
    learner = make_learner(connectome, model)
    training = Training(batch_size=batch_size, data_augmentation_loop=1e4)
    n_lanes = candidates * seeds
    n_devices = distributed.even(min(distributed.n_devices(), n_lanes))
    padded = -(-n_lanes // n_devices) * n_devices
    program = lanes.compiled(learner, static_of(training), n_devices)
    own = traced_hparams(training, n_frames, 0)
    hparams = distributed.place(lanes.stack_hparams([own] * padded), program.by_lane)
    data = distributed.place(stack_recordings([_noise(connectome, n_frames)]), program.replicated)
    start = time.perf_counter()
    states = [lanes.start(learner, static_of(training), own, jax.random.key(seed)) for seed in range(padded)]
    state, loss = jax.block_until_ready(distributed.place(lanes.stack_states(states), program.by_lane)), None
    compiled = program.chunk.lower(hparams, data, state).compile()
    compile_s = time.perf_counter() - start

    def chunk():  # donates the state
        nonlocal state, loss
        state, loss = compiled(hparams, data, state)
        return loss

    distributed.barrier()
    best = distributed.largest(round(1e9 * best_times(chunk, repeats)[0])) / 1e9  # of the slowest process
    if not np.isfinite(distributed.fetch([loss])[0]).any():
        raise RuntimeError("the benchmarked training diverged")
    rate = n_lanes * batch_size * CHUNK / best
    work = gflop_per_frame(model, batch_size, connectome.n_neurons, connectome.n_edges)
    peak, stats = peak or matmul_gflops(), jax.local_devices()[0].memory_stats() or {}
    return {
        "extent": extent,
        "candidates": candidates,
        "seeds": seeds,
        "batch_size": batch_size,
        "width": width,
        "regularisers": True,
        "frames_per_s": rate,
        "ms_per_step": 1e3 * best / CHUNK,
        "gflop_per_frame": work,
        "matmul_gflops": peak,
        "share_of_peak": rate * work / peak,
        "compile_s": compile_s,
        # Of the accelerator if it reports it, else of this process.
        "peak_memory_gb": stats["peak_bytes_in_use"] / 1e9 if "peak_bytes_in_use" in stats else peak_memory_gb(),
        "device": jax.local_devices()[0].device_kind,
        "n_devices": n_devices,
        "processes": distributed.count(),
    }


def scale_rows(
    script: str, processes: Sequence[int], lanes: int, extent: int, batch_size: int, width: int, repeats: int = 3
) -> list[dict]:
    """Weak scaling, `lanes` of each process, and strong scaling, `lanes` in all, over processes on this machine.

    Each process runs `script` train. On a CPU it has one device, which may keep more than one core busy.
    """
    rows = []
    for kind in ("weak", "strong"):
        for n in processes:
            total = lanes * n if kind == "weak" else lanes
            with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address, file = f"127.0.0.1:{free.getsockname()[1]}", Path(folder) / "rows.json"
                free.close()
                settings: dict[str, Any] = {
                    "extent": extent,
                    "candidates": total,
                    "batch-size": batch_size,
                    "width": width,
                }
                settings |= {"repeats": repeats, "json": file, "coordinator": address, "processes": n}
                command = [sys.executable, script, "train", *(f"--{k}={v}" for k, v in settings.items())]
                running = [
                    subprocess.Popen(
                        [*command, f"--process={k}"], env=environment.one_core(), stdout=subprocess.DEVNULL
                    )
                    for k in range(n)
                ]
                if any([process.wait() for process in running]):
                    raise UserError(f"{n} processes of {plural(total, 'lane')} did not end well, see above")
                rows.append({"scaling": kind, **json.loads(file.read_text("utf-8"))[0]})
    for row in rows:  # relative to the first of its kind
        first = next(other for other in rows if other["scaling"] == row["scaling"])
        speed = row["frames_per_s"] / first["frames_per_s"]
        row["efficiency"] = speed * first["processes"] / row["processes"]
    return rows


def profile_rows(
    extent: int, batch_size: int, width: int, repeats: int = 7, segment_rows: int | None = None
) -> list[dict]:
    """The time of the parts of one training step, each compiled and timed alone, shortest of several runs.

    CPU seconds are of all threads; on a shared machine they vary less than wall time.
    The parts do not add up to the step, which overlaps and fuses them.
    """
    connectome, model = build_connectome(extent), Model(width=width)
    learner, training = make_learner(connectome, model, segment_rows), Training(batch_size=batch_size)
    hparams = jax.tree.map(jnp.asarray, traced_hparams(training, 1_000_000, 0))
    static, data = static_of(training), stack_recordings([_noise(connectome, 64)])
    state = init_state(learner, static, hparams, jax.random.key(0))
    params, frames = unpack(learner, state.params), jnp.arange(batch_size)
    batch = {name: data[name][0, :batch_size] for name in ("voltage", "target", "luminance")}
    voltage, senders, receivers = batch["voltage"].T, jnp.asarray(connectome.senders), jnp.asarray(connectome.receivers)

    def message_sum(weight, sent):
        return jax.ops.segment_sum(
            weight[:, None] * sent[senders], receivers, connectome.n_neurons, indices_are_sorted=True
        )

    def total(params):
        return losses.loss(learner, params, hparams, batch, jnp.float32(1.0), static.with_curvature)[0]

    def regularisers(params):
        return sum(
            losses.regularisers(learner, params, hparams, batch, jnp.float32(1.0), static.with_curvature).values()
        )

    def adam(state):
        return make_optimizer(hparams, static.schedule).update(state.params, state.optimizer, state.params)

    parts = {
        "one step": (lambda s: train_step(learner, static, hparams, data, s, frames), state),
        "loss and gradient": (jax.value_and_grad(total), params),
        "loss alone": (total, params),
        "data term and gradient": (jax.value_and_grad(lambda p: learner.squared_error(p, **batch)), params),
        "regularisers and gradient": (jax.value_and_grad(regularisers), params),
        "message sum": (lambda args: message_sum(*args), (params["W"], voltage)),
        "message sum and gradient": (
            jax.value_and_grad(lambda args: jnp.sum(jnp.square(message_sum(*args)))),
            (params["W"], voltage),
        ),
        "Adam": (adam, state),
    }
    rows = []
    for name, (function, argument) in parts.items():
        wall, cpu = best_times(functools.partial(jax.jit(function), argument), repeats)
        rows.append({"part": name, "ms": 1e3 * wall, "cpu_ms": 1e3 * cpu})
    return rows


def evaluation_work(learner: Learner, n_frames: int) -> tuple[dict[str, float], dict[str, float]]:
    """GFLOP and GB of the parts of an evaluation in which they dominate, by part.

    A product of a symmetric table counts half; bytes are those that have to be read.
    """
    c = learner.connectome
    table = sum(len(rows) ** 2 for rows in table_rows(c, 1))
    per_row = sum(2 * x.size for x in jax.tree.leaves(learner.init(jax.random.key(0))) if x.ndim == 2) / 2  # one of two
    gflop = {
        "closed form": 1e-9 * table * n_frames,
        "refit": 1e-9 * min(n_frames, MAX_FRAMES) * (table + per_row * c.n_neurons),
        "published read-out": 2e-9 * N_POINTS * per_row * c.n_neurons,
    }
    gigabytes = {"closed form": 8e-9 * n_frames * c.n_neurons, "activity": 4e-9 * n_frames * c.n_neurons}
    return gflop, gigabytes


def full_rows(experiment: Experiment, n_nodes: int) -> list[dict]:
    """The seconds of each stage of some nodes of an experiment, from stimulus to figures, by `train_nodes`.

    The nodes differ by seed and are trained together, with reports, as candidates are. What the first of a kind takes
    includes compilation.
    """
    simulation, training = experiment.simulation, experiment.training
    learner, n_frames = learner_for(simulation, experiment.model), simulation.n_frames
    specs = [NodeSpec(k, training, (k,)) for k in range(1, n_nodes + 1)]
    stages, reports = [], []
    with tempfile.TemporaryDirectory() as folder, RunDirectory(Path(folder) / "run", "train") as run:
        train_nodes(
            experiment,
            specs,
            run.path,
            on_stage=lambda stage: stages.append((stage, time.perf_counter())),
            on_progress=lambda progress: reports.append((progress.lane_steps, time.perf_counter())),
        )
        stages.append(("end", time.perf_counter()))
    start = time.perf_counter()
    record(simulation, training.noise_model_level, seed=1)
    recording_again = time.perf_counter() - start

    c = learner.connectome
    with_curvature = static_of(training).with_curvature
    per_frame = gflop_per_frame(experiment.model, training.batch_size, c.n_neurons, c.n_edges, with_curvature)
    recording_gb = 1e-9 * n_frames * (8 * c.n_edges + 12 * c.n_neurons)  # as `benchmark.py simulate` counts them
    gflop, gigabytes = (sum(part.values()) for part in evaluation_work(learner, n_frames))
    (first_steps, first_report), (last_steps, last_report) = reports[0], reports[-1]
    frames = (last_steps - first_steps) * training.batch_size
    seconds: dict[str, float] = {}
    for (stage, begin), (_, end) in pairwise(stages):
        seconds[stage] = seconds.get(stage, 0.0) + end - begin
    drawing = sum(value for stage, value in seconds.items() if stage.startswith("drawing"))
    more = [value for stage, value in seconds.items() if stage.startswith("evaluating,")]
    rows = [
        ("recordings, the first", seconds["simulating"], 0.0, recording_gb),
        ("recording, another", recording_again, 0.0, recording_gb),
        ("training, the first chunk", first_report - stages[1][1], first_steps * training.batch_size * per_frame, 0.0),
        ("training, the rest", last_report - first_report, frames * per_frame, 0.0),
        ("evaluation of the first node", seconds["evaluating"], gflop, gigabytes),
        ("evaluation of the others", sum(more), len(more) * gflop, len(more) * gigabytes),
        ("files and figures", drawing, 0.0, 0.0),
        ("all nodes", stages[-1][1] - stages[0][1], 0.0, 0.0),
    ]
    shared = {
        "benchmark": "full",
        "experiment": experiment.name,
        "extent": simulation.extent,
        "frames": n_frames,
        "nodes": n_nodes,
        "n_steps": last_steps // n_nodes,
        "train_frames_per_s": frames / (last_report - first_report) if frames else None,
    }
    columns = ("part", "seconds", "gflop", "gigabytes")
    return [shared | dict(zip(columns, values, strict=True)) for values in rows]


#: What `accelerator_rows` trains: forms of the networks with their precision, by name, and (lanes, frames per step).
FORMS: dict[str, dict[str, Any]] = {
    "accelerator": {"form": "accelerator"},
    "cpu": {"form": "cpu"},
    "accelerator, bfloat16": {"form": "accelerator", "matmul_precision": "bfloat16_kept"},
}
SHAPES = ((1, 4), (8, 1))


def hidden_gigabytes(model: Model, batch_size: int, n_neurons: int) -> float:
    """The least that the hidden layers of a training step move, GB: each is written and read, forward and backward."""
    rows = (2 * batch_size + 2) * n_neurons  # of both networks, and of the voltages that only regularisers need
    kept = 2 if model.matmul_precision == "bfloat16_kept" else 4
    return 4e-9 * kept * rows * model.width * (model.n_layers - 1)


def accelerator_rows(experiment: Experiment, n_nodes: int, repeats: int = 3) -> Iterator[list[dict]]:
    """What an accelerator takes, part by part: training in each of `FORMS`, and nodes from stimulus to figures.

    Training rows are of one chunk of all lanes, on random numbers; the arithmetic and the bytes beside them are the
    least that it needs. The most telling parts come first.
    """
    extent, width, peak = experiment.simulation.extent, experiment.model.width, matmul_gflops()
    n_neurons = build_connectome(extent).n_neurons

    def trained(name: str, lanes: int, batch_size: int) -> dict:
        row = train_row(extent, lanes, 1, batch_size, width, repeats=repeats, peak=peak, **FORMS[name])
        frames, model = lanes * batch_size * CHUNK, Model(width=width, **FORMS[name])
        return row | {
            "benchmark": "accelerator",
            "part": f"{CHUNK} steps of {lanes} x {batch_size}, form {name}",
            "seconds": frames / row["frames_per_s"],
            "gflop": frames * row["gflop_per_frame"],
            "gigabytes": lanes * CHUNK * hidden_gigabytes(model, batch_size, n_neurons),
        }

    first, *others = [(name, *shape) for shape in SHAPES for name in FORMS]
    yield [trained(*first)]
    for row in (nodes := full_rows(experiment, n_nodes)):
        row["frames_per_s"] = row["train_frames_per_s"] or 0.0 if row["part"] == "training, the rest" else 0.0
    yield nodes
    for other in others:
        yield [trained(*other)]


def judge_rows(extent: int, n_frames: int, width: int) -> list[dict]:
    """The seconds of each part of the evaluation of one untrained network, with compilation and without.

    Beside the parts in which they dominate, the arithmetic (GFLOP; a product of a symmetric table counts half) and the
    bytes that have to be read.
    """
    simulation = Simulation(extent=extent, visual_input_type="scenes_texture", n_frames=n_frames, n_test_frames=400)
    train, test = record(simulation, 0.05, "train"), record(simulation, 0.0, "test")
    learner = make_learner(train.connectome, Model(width=width))
    gflop, gigabytes = evaluation_work(learner, n_frames)

    def timed(seed: int, recording) -> dict[str, tuple[float, float]]:
        params, seconds = learner.init(jax.random.key(seed)), {}

        def part(name, call):
            start, used = time.perf_counter(), time.process_time()
            found = jax.block_until_ready(call())
            seconds[name] = time.perf_counter() - start, time.process_time() - used
            return found

        run = part("rollout", lambda: rollout(learner, params, test))
        part("activity", lambda: activity(recording, run))
        published = part("published read-out", lambda: extract(learner, params, recording))
        linear = part("read-out at training frames", lambda: linear_readout(learner, params, recording))
        part("closed form", lambda: closed_form(recording))
        fitted = part("refit", lambda: refit(learner, params, recording, published, linear)).estimate
        embedding = np.asarray(params["embedding"])
        part("clusters", lambda: all_cluster_metrics(published.estimate, embedding, recording, refit=fitted))
        part("everything, recording known", lambda: evaluate(learner, params, recording, test).metrics)
        return seconds

    first, again = timed(0, train), timed(1, dataclasses.replace(train))
    shared = {"benchmark": "judge", "extent": extent, "frames": n_frames, "width": width}
    return [
        {
            **shared,
            "part": name,
            "first_s": first[name][0],
            "seconds": wall,
            "cpu_s": cpu,
            "gflop": gflop.get(name, 0.0),
            "gigabytes": gigabytes.get(name, 0.0),
        }
        for name, (wall, cpu) in again.items()
    ]
