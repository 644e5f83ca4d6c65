"""Programs, memory, recordings and time of a training, estimated before it starts and without data."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from flyjax.config import Experiment, Model, Simulation, Training
from flyjax.experiments.benchmark import matmul_gflops
from flyjax.search.iteration import block_simulation, n_seeds
from flyjax.training import grouping
from flyjax.utils.errors import UserError
from flyjax.utils.format import aligned_table, duration, format_bytes, plural

#: Share of the rate of a large matrix product that trainings reach: experiments/results/benchmark_train.json has
#: 0.29 to 0.47 on two CPU cores; on accelerators it is an assumption.
SHARE_OF_PEAK = {"cpu": 0.35}
SHARE_ELSEWHERE = 0.1


@dataclass(frozen=True)
class Rate:
    """GFLOP/s that a time estimate rests on."""

    gflops: float
    source: str


def measured_rate() -> Rate:
    """Measure the rate of a matrix product, within a second, and scale it by the share that trainings reach."""
    platform = jax.local_devices()[0].platform
    share = SHARE_OF_PEAK.get(platform, SHARE_ELSEWHERE)
    peak = matmul_gflops(1024, repeats=2) * (1 if platform == "cpu" else jax.local_device_count())
    return Rate(
        share * peak,
        f"{share:.0%} (assumed) of the {peak:.0f} GFLOP/s of a matrix product measured just now, without compilation",
    )


def given_memory(size_gb: float | None) -> grouping.Memory | None:
    """An accelerator of a given size, GB, on another machine; None for this one."""
    return None if size_gb is None else grouping.Memory(int(size_gb * 1e9), "given, on each accelerator", False)


@dataclass(frozen=True)
class Forecast:
    """The plan of one batch of trainings."""

    text: str
    seconds: float | None
    recordings: int


def forecast(
    simulation: Simulation,
    model: Model,
    candidates: Sequence[Training],
    seeds: Sequence[Sequence[int]],
    rate: Rate | None,
    memory: grouping.Memory | None = None,
    max_disk_gb: float = 20.0,
    n_devices: int | None = None,
) -> Forecast:
    """Programs of candidates x seeds as a table, with memory, recordings and a time estimate.

    **Arguments:** `rate` is None for a device on which nothing was measured: then no time is estimated. `memory` is
    that of each of `n_devices` other devices, by default what is free on this machine, with all its devices.
    """
    sizes = grouping.sizes_without_data(simulation, model)
    n_devices, too_large = jax.local_device_count() if memory is None else n_devices or 1, []
    memory = memory or grouping.device_memory()

    budget = grouping.Budget(sizes, model, memory, n_devices)

    def limits_of(static, n_lanes, n_levels):
        try:
            return budget.limits(static, n_lanes, n_levels)
        except UserError as error:
            too_large.append(str(error))
            return grouping.Limits(1, 1, 1)

    groups = grouping.plan(candidates, seeds, sizes.n_frames, limits_of)
    gflops = [max(lane.n_steps for lane in group.lanes) * group.width * budget.gflop(group.static) for group in groups]
    seconds = None if rate is None else [gflop / rate.gflops for gflop in gflops]
    levels = sorted({c.noise_model_level for c in candidates})
    lanes = sum(len(g.lanes) for g in groups)
    lane = grouping.lane_bytes(sizes, model, max(c.batch_size for c in candidates), memory.shared)
    per_neuron = (2 if simulation.voltage_dtype == "float16" else 4) + (4 if simulation.store_derivative else 0)
    stored = sizes.n_frames * (per_neuron * sizes.n_neurons + 4 * sizes.n_columns)
    lines = [
        f"{plural(lanes, 'training')} in {plural(len(groups), 'program')}; {sizes.n_neurons:,} neurons, "
        f"{sizes.n_edges:,} edges, {sizes.n_params:,} parameters, {sizes.n_frames:,} frames",
        aligned_table(budget.table(groups, seconds)),
        f"memory: {format_bytes(memory.free)} {memory.source}, {grouping.SHARE:.0%} of it planned for; per lane: "
        f"parameters {format_bytes(lane['params'])}, Adam {format_bytes(lane['adam'])}, a step "
        f"{format_bytes(lane['step'])}, activations {format_bytes(lane['activations'])}",
        f"recordings: {plural(len(levels), 'noise level')} "
        f"({', '.join(f'{x:g}' for x in levels[:8])}{', …' if len(levels) > 8 else ''}), "
        f"{format_bytes(grouping.recording_bytes(sizes))} each while it trains, {format_bytes(stored)} on disk",
    ]
    if len(levels) * stored > max_disk_gb * 1e9:
        lines.append(
            f"  {format_bytes(len(levels) * stored)} on disk are more than search.max_disk_gb={max_disk_gb:g}: "
            "raise it, or recordings are simulated again when they are needed"
        )
    if rate is None or seconds is None:
        lines.append(f"time: not measured for that device; {sum(gflops):.3g} GFLOP of training")
    else:
        lines.append(f"time: about {duration(sum(seconds))} of training, at {rate.gflops:.0f} GFLOP/s: {rate.source}")
    lines += [f"does not fit: {line}" for line in dict.fromkeys(too_large)]
    return Forecast("\n".join(lines), None if seconds is None else sum(seconds), len(levels))


def _candidates_of_many_levels(experiment: Experiment) -> list[Training]:
    """K candidates like the root, with K different noise levels from the search's range if it has one."""
    root, k = experiment.training, experiment.search.n_candidates
    if (span := experiment.search.ranges.get("noise_model_level")) is None:
        return [root] * k
    low, high = span.min or 0.0, span.max or 0.0
    levels = span.values or [round(low + i * (high - low) / k, 6) for i in range(k)]
    return [root.model_copy(update={"noise_model_level": levels[i % len(levels)]}) for i in range(k)]


def first_result_seconds(experiment: Experiment) -> float | None:
    """Seconds of training until a search has its first result; None where no rate can be measured."""
    simulation = experiment.simulation.model_copy(update=block_simulation(experiment, 1))
    candidates = _candidates_of_many_levels(experiment)
    seeds = [range(n_seeds(experiment, k == 0)) for k in range(len(candidates))]
    rate, disk = measured_rate(), experiment.search.max_disk_gb
    return forecast(simulation, experiment.model, candidates, seeds, rate, None, disk).seconds


def forecast_search(experiment: Experiment, memory: grouping.Memory | None = None, n_devices: int | None = None) -> str:
    """Forecast one iteration of each block at its largest, every candidate with a noise level of its own."""
    search, rate = experiment.search, measured_rate() if memory is None else None
    total, parts, known = 0.0, [], {}
    for block in range(1, search.n_blocks + 1):
        simulation = experiment.simulation.model_copy(update=block_simulation(experiment, block))
        candidates = _candidates_of_many_levels(experiment)
        seeds = [range(experiment.training.n_seeds)] * search.n_candidates
        key = simulation.model_dump_json(exclude={"visual_input_type", "test_visual_input_type", "delta_t"})
        if key not in known:
            known[key] = forecast(
                simulation, experiment.model, candidates, seeds, rate, memory, search.max_disk_gb, n_devices
            )
            what = (
                f"an iteration of block {block}, {search.n_candidates} candidates of "
                f"{plural(known[key].recordings, 'noise level')} at the root's batch size"
            )
            parts.append(f"{what}:\n{known[key].text}")
        extra = (n_seeds(experiment, True) - experiment.training.n_seeds) / (
            search.n_candidates * experiment.training.n_seeds
        )
        total += (known[key].seconds or 0.0) * (search.n_iter_block + extra)
    if rate is not None:
        parts.append(f"complete run: about {duration(total)} of training, without evaluation and proposals")
    return "\n".join(parts)
