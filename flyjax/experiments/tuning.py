"""Tuning by script: show a protocol to a circuit, or to a fly and its trained network, tabulate and draw it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flyjax.config import Simulation, read_yaml_file
from flyjax.config.loading import apply_overrides
from flyjax.config.strict import StrictModel
from flyjax.experiments.node import learner_for
from flyjax.experiments.reevaluate import experiment_of, finished_seeds, folder_of
from flyjax.ground_truth import build_ground_truth
from flyjax.recovery.metrics import compare
from flyjax.report.figures import tuning as figures
from flyjax.training import load_params
from flyjax.tuning import (
    Circuit,
    EdgeResponses,
    Flashes,
    FlashResponses,
    MovingEdges,
    Network,
    ReceptiveFields,
    WhiteNoise,
    flashes,
    moving_edges,
    receptive_fields,
)
from flyjax.tuning.fly import Fly
from flyjax.tuning.indices import angular_distance
from flyjax.tuning.known import POLARITY, PREFERRED_DIRECTIONS
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.format import csv_table, finite
from flyjax.utils.run_directory import RunDirectory, refuse_links

#: Name on the command line: settings, and the function that shows them to a fly.
PROTOCOLS: dict[str, tuple[type[StrictModel], Any]] = {
    "moving_edges": (MovingEdges, moving_edges),
    "flashes": (Flashes, flashes),
    "white_noise": (WhiteNoise, receptive_fields),
}
Responses = EdgeResponses | FlashResponses | ReceptiveFields


def settings_of(protocol: str, changes: Sequence[str] = (), dt: float | None = None) -> Any:
    """The settings of a protocol with `KEY=VALUE` changes.

    **Raises:** `UserError` for an unknown protocol or key, or a value out of range.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol {protocol!r}.{nearest(protocol, PROTOCOLS)} Known: {', '.join(PROTOCOLS)}.")
    given = apply_overrides({} if dt is None else {"dt": dt}, changes)
    return PROTOCOLS[protocol][0](**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _edge_rows(found: EdgeResponses) -> list[dict[str, Any]]:
    rows = []
    order = np.argsort(found.settings.intensities)
    for k, name in enumerate(found.cell_types):
        row: dict[str, Any] = {"cell_type": name}
        for label, i in (("ON", int(order[-1])), ("OFF", int(order[0]))):
            row |= {
                f"DSI {label}": float(found.dsi[i, k]),
                f"OSI {label}": float(found.osi[i, k]),
                f"preferred {label}": finite(float(found.preferred[i, k])),
            }
        published = PREFERRED_DIRECTIONS.get(name)
        measured = row["preferred ON" if name.startswith("T4") else "preferred OFF"]
        error = None if published is None or measured is None else float(angular_distance(measured, published))
        rows.append({**row, "published": published, "error": error})
    return rows


def _flash_rows(found: FlashResponses) -> list[dict[str, Any]]:
    words = {1: "ON", -1: "OFF", 0: ""}
    return [
        {"cell_type": name, "FRI": float(fri), "known": words[POLARITY.get(name, 0)]}
        for name, fri in zip(found.cell_types, found.fri, strict=True)
    ]


def _field_rows(found: ReceptiveFields) -> list[dict[str, Any]]:
    rows = []
    for name, kernel in zip(found.cell_types, found.kernel, strict=True):
        lag, column = np.unravel_index(np.argmax(np.abs(kernel)), kernel.shape)
        share = float(np.abs(kernel[:, column]).sum() / max(np.abs(kernel).sum(), 1e-12))
        values = {"peak": float(kernel[lag, column]), "delay_ms": 1000 * found.settings.hold * int(lag)}
        rows.append({"cell_type": name, **values, "column": int(column), "share of that column": share})
    return rows


def rows_of(found: Responses) -> list[dict[str, Any]]:
    """One row per cell type."""
    if isinstance(found, EdgeResponses):
        return _edge_rows(found)
    return _flash_rows(found) if isinstance(found, FlashResponses) else _field_rows(found)


def summary(found: Responses) -> str:
    """Agreement with what experiments have found, in one line; empty where nothing is known."""
    rows = rows_of(found)
    if isinstance(found, EdgeResponses) and (known := [r for r in rows if r["error"] is not None]):
        errors = ", ".join(f"{r['cell_type']} {r['error']:.0f}" for r in known)
        return f"distance of the preferred from the published direction, degrees: {errors}"
    if isinstance(found, FlashResponses) and (known := [r for r in rows if r["known"]]):
        wrong = [r["cell_type"] for r in known if (r["FRI"] > 0) != (r["known"] == "ON")]
        return f"{len(known) - len(wrong)} of {len(known)} types prefer the known contrast" + (
            f"; not {', '.join(wrong)}" if wrong else ""
        )
    return ""


def agreement(true: Responses, learned: Responses) -> list[dict[str, Any]]:
    """R2 of the learned against the true circuit's measures over cell types, and of their responses."""
    pairs: Mapping[str, tuple]
    if isinstance(true, EdgeResponses) and isinstance(learned, EdgeResponses):
        pairs = {
            "peaks": (true.peaks, learned.peaks), "DSI": (true.dsi, learned.dsi), "OSI": (true.osi, learned.osi)
        }  # fmt: skip
    elif isinstance(true, FlashResponses) and isinstance(learned, FlashResponses):
        pairs = {"voltages": (true.traces, learned.traces), "FRI": (true.fri, learned.fri)}
    else:
        assert isinstance(true, ReceptiveFields) and isinstance(learned, ReceptiveFields)
        pairs = {"receptive fields": (true.kernel, learned.kernel)}
    fits = {name: compare(*pair) for name, pair in pairs.items()}
    return [{"measure": name, "R2": fit.R2, "slope": fit.slope, "n": fit.n} for name, fit in fits.items()]


def draw(path: Path, found: Sequence[Responses], columns, title: str) -> Path:
    """The figure of a protocol; of the true circuit, and of the learned one where there is one."""
    if isinstance(found[0], ReceptiveFields):
        return figures.fields_figure(path, found, columns, title)  # type: ignore[arg-type]
    kind = figures.edges_figure if isinstance(found[0], EdgeResponses) else figures.flashes_figure
    return kind(path, found, title)  # type: ignore[arg-type]


def measure(fly: Fly, learned: Fly | None, protocol: str, settings, folder: Path, title: str, console) -> None:
    """Show one protocol to a fly, and to its learned circuit if given; write and print what they have.

    Writes NAME.csv, NAME.png and, with a learned circuit, NAME_learned.csv into `folder`.
    """
    show = PROTOCOLS[protocol][1]
    found = [show(fly, settings)] + ([show(learned, settings)] if learned is not None else [])
    for responses, suffix in zip(found, ("", "_learned"), strict=False):
        rows = rows_of(responses)
        write_atomic(folder / f"{protocol}{suffix}.csv", csv_table(list(rows[0]), rows))
    shown = [r for r in rows_of(found[0]) if r.get("published") is not None or r.get("known") or "peak" in r]
    console.table(shown or rows_of(found[0]), list(rows_of(found[0])[0]))
    if line := summary(found[0]):
        console.log(line)
    if learned is not None:
        console.log("the learned against the true circuit")
        rows = agreement(*found)
        console.table(rows, list(rows[0]))
        write_atomic(folder / f"{protocol}_agreement.csv", csv_table(list(rows[0]), rows))
    path = draw(folder / f"{protocol}.png", found, fly.connectome.columns, title)
    console.log(f"{path}, and {protocol}.csv beside it")


def measure_ground_truth(simulation: Simulation, protocol: str, settings, out: Path, console) -> None:
    """`measure` of a simulation's circuit, into a folder of its own."""
    fly = Circuit(*build_ground_truth(simulation))
    parameters = simulation.parameters if not Path(simulation.parameters).exists() else Path(simulation.parameters).stem
    title = f"{protocol.replace('_', ' ')}: {parameters}, extent {simulation.extent}"
    with RunDirectory(out, "simulation"):
        measure(fly, None, protocol, settings, out, title, console)


def compare_saved_node(where: Path, node: int, protocol: str, changes: Sequence[str], console) -> None:
    """`measure` of a trained node: the simulated circuit, and the free rollout of the seed with the lowest loss.

    The frame interval is that of the training unless changed. Writes into the folder `tuning` of the node.

    **Raises:** `UserError` where the node is missing or diverged, is of a recording of one's own, or its rollout
    diverges.
    """
    folder = folder_of(where, node)
    refuse_links(folder)
    config = read_yaml_file(folder / "config.yaml")
    experiment = experiment_of(folder, config)
    simulation, seeds = experiment.simulation, finished_seeds(folder, config)
    if simulation.recording is not None:
        raise UserError(f"{folder}: --protocol needs a circuit that can be simulated, not a recording of one's own")
    if not seeds:
        raise UserError(f"{folder}: every training of the node diverged; choose another one with --node")
    settings, seed = settings_of(protocol, changes, simulation.delta_t), next(iter(seeds))
    learner = learner_for(simulation, experiment.model)
    params = load_params(folder / "params" / f"seed_{seed}", learner.init(jax.random.key(0)))
    title = f"{protocol.replace('_', ' ')}: node {folder.name}, seed {seed}, extent {simulation.extent}"
    fly = Circuit(*build_ground_truth(simulation))
    measure(fly, Network(learner, params), protocol, settings, folder / "tuning", title, console)
