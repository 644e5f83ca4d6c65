"""Results tables as Markdown, drawn from the journal of finished rows alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flyjax.config import content_hash
from flyjax.experiments.recovery_table import Row, Table
from flyjax.recovery.model_selection import selection
from flyjax.utils.format import MISSING, markdown_table
from flyjax.utils.metric_names import BLIND_CRITERIA, QUANTITIES

Done = Sequence[tuple[Row, Mapping]]  # rows with their lines of the journal


def over_seeds(event: Mapping, name: str) -> np.ndarray:
    """The values of a metric over the seeds that have it."""
    return np.array([seed[name] for seed in event["per_seed"] if name in seed])


def _spread(values: np.ndarray) -> str:
    """mean (min); CV in percent."""
    if not len(values):
        return MISSING
    if len(values) == 1:
        return _short(values[0])
    mean = values.mean()
    cv = f", {100 * values.std(ddof=1) / mean:.1f} %" if mean > 0 else ""
    return f"{_short(mean)} ({_short(values.min())}{cv})"


def _short(value: float) -> str:
    digits = 5 if 0.9995 <= value < 1 else 3
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def _cells(event: Mapping, suffix: str) -> list[str]:
    return [_spread(over_seeds(event, name + suffix)) for name in QUANTITIES]


def _share(event: Mapping, name: str) -> str:
    values = over_seeds(event, name)
    return f"{values[0]:.1%}" if len(values) else MISSING


def blind_choices(done: Done) -> list[list[str]]:
    """Cells of a table: W R2 of the network that each criterion without ground truth selects.

    All seeds of all rows of one simulation are candidates, if there are at least three.
    """
    groups: dict[str, list[tuple[str, dict]]] = {}
    for row, event in done:
        config = event.get("config", {})
        training = config.get("training", {})
        frames = training.get("batch_size", 1) * training.get("rollout_steps", 1)
        key = content_hash(config.get("simulation", {}), training.get("noise_model_level"))
        for seed in event["per_seed"]:
            # A loss is a norm over frames and neurons; of one simulation, only the frames differ.
            known = {"final_error": seed["final_loss"] / np.sqrt(frames)} if "final_loss" in seed else {}
            groups.setdefault(key, []).append((row.name, seed | known))
    cells = []
    for networks in groups.values():
        found = {r["chosen_on"]: r for r in selection(dict(enumerate(m for _, m in networks)))}
        best = found.pop("connectivity_R2", None)
        if best is None or best["of"] < 3:
            continue
        names = list(dict.fromkeys(name for name, _ in networks))
        label = names[0] + (f" and {len(names) - 1} more rows" if len(names) > 1 else "")
        picked = (found.get(criterion) for criterion in BLIND_CRITERIA)
        cells.append(
            [
                label,
                str(best["of"]),
                _short(best["value"]),
                *(f"{_short(r['value'])} (rank {r['rank']})" if r else MISSING for r in picked),
            ]
        )
    return cells


def summary(event: Mapping) -> str:
    """One line for the terminal."""
    cells = [
        f"{name} {_spread(over_seeds(event, q))}, refit {_spread(over_seeds(event, q + '_refit_identifiable'))}"
        for q, name in QUANTITIES.items()
    ]
    return "; ".join(cells) + f"; {event['train_s']:.0f} s"


def _provenance_of(event: Mapping) -> str:
    """Hardware, versions, date and commit of a row in one line."""
    parts = [event["hardware"], event["device"], f"JAX {event['jax']}", event["date"]]
    parts.append(f"commit {event['commit']}" if "commit" in event else "unknown commit")
    if "parameters_sha256" in event:
        parts.append(f"parameters from a file of SHA-256 {event['parameters_sha256']}…")
    return ", ".join(parts)


def _provenance(table: Table, done: Done) -> str:
    """What the rows were made with: once if equal for all, else per group of rows."""
    groups: dict[str, list[str]] = {}
    for row, event in done:
        groups.setdefault(_provenance_of(event), []).append(row.name)
    head = f"`experiments/{table.name}.yaml`"
    if len(groups) == 1:
        return f"{head}; {next(iter(groups))}.\n"
    return "\n".join(
        [
            f"{head}; its rows were made with",
            "",
            *(f"- {made}: {'; '.join(names)}" for made, names in groups.items()),
            "",
        ]
    )


def _tables(done: Done) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Heads and cells of the tables of a section."""
    symbols = list(QUANTITIES.values())
    identifiable = [f"{symbol}, identifiable" for symbol in symbols]

    def rows(cells: Callable[[Row, Mapping], Sequence[str]], metric: str = "") -> list[list[str]]:
        """Cells of the rows that have a metric."""
        return [[row.name, *cells(row, e)] for row, e in done if not metric or len(over_seeds(e, metric))]

    def spread(event: Mapping, *names: str) -> list[str]:
        return [_spread(over_seeds(event, name)) for name in names]

    def plain(row: Row, e: Mapping) -> list[str]:
        seeds = f"{len(e['per_seed'])}" + (f" ({e['diverged']} diverged)" if e["diverged"] else "")
        cells = [seeds, *_cells(e, ""), *_cells(e, "_identifiable"), *spread(e, "test_R2")]
        return [*cells, row.published or ""] if published else cells

    def refit(row: Row, e: Mapping) -> list[str]:
        first = {"per_seed": e["per_seed"][:1]}  # the closed form depends on the recording, not on the seed
        return [*_cells(e, "_refit"), *_cells(e, "_refit_identifiable"), *_cells(first, "_ceiling")]

    def corrected(row: Row, e: Mapping) -> list[str]:
        cells = [*_cells(e, "_refit_corrected"), *_cells(e, "_refit_corrected_identifiable")]
        return [*cells, *spread(e, "connectivity_R2_refit_corrected_slope")]

    def further(row: Row, e: Mapping) -> list[str]:
        clusters = [
            "{} / {} [{}]".format(*spread(e, name, f"{name}_refit"), _spread(over_seeds(e, f"{name}_true")[:1]))
            for name in ("cluster_accuracy", "cluster_accuracy_65")
        ]
        return [
            " / ".join(_share(e, f"identifiable_{n}") for n in ("edges", "neurons", "weight_variance")),
            *spread(e, "connectivity_R2_slope", "connectivity_R2_refit_slope"),
            *clusters,
            *(spread(e, "lesion_R2") if row.lesion else [MISSING]),
            f"{e['train_s']:.0f} s / {e['n_steps']:,}",
        ]

    published = any(row.published for row, _ in done)
    other_data = ["published (DAVIS, not the same data)"] if published else []
    yield ["plain", "seeds", *symbols, *identifiable, "free run", *other_data], rows(plain)
    yield (
        ["at real frames", *symbols, *identifiable],
        rows(lambda row, e: [*_cells(e, "_data"), *_cells(e, "_data_identifiable")]),
    )
    yield ["refit", *symbols, *identifiable, *(f"{symbol}, closed form" for symbol in symbols)], rows(refit)
    yield (
        ["refit, corrected for measurement noise", *symbols, *identifiable, "slope of W"],
        rows(corrected, "connectivity_R2_refit_corrected"),
    )
    luminance = [f"external_input_R2{suffix}" for suffix in ("", "_training", "_inverted")]
    yield (
        [
            "unknown stimulus: luminance of the field",
            "held-out frames",
            "training frames",
            "another movie, inverting f",
        ],
        rows(lambda row, e: spread(e, *luminance), "external_input_R2_training"),
    )
    criteria = ["ground truth", "free run", "one-step prediction", "training loss"]
    yield ["W of the network selected by", "networks", *criteria], blind_choices(done)
    yield (
        ["", "identifiable edges / neurons / variance of W", "slope of W", "slope, refit", "clusters / refit [true]"]
        + ["clusters 65 / refit [true]", "free run, lesioned", "training / steps"],
        rows(further),
    )


def render(tables: Sequence[tuple[Table, Mapping[str, dict]]]) -> str:
    """recovery.md: every table with its finished rows (`row name -> event`); missing ones are named.

    Values are R2 over the seeds: mean (minimum, coefficient of variation).
    """
    parts = ["# What is recovered, and what is not\n", PREAMBLE]
    for table, finished in tables:
        done = [(row, finished[row.name]) for row in table.rows if row.name in finished]
        missing = [row.name for row in table.rows if row.name not in finished]
        parts.append(f"## {table.title}\n\n{table.text.strip()}\n" if table.text else f"## {table.title}\n")
        if missing:
            parts.append(f"Not run: {', '.join(missing)}.\n")
        if done:
            parts.append(_provenance(table, done))
            parts += [markdown_table(head, cells) for head, cells in _tables(done) if cells]
    return "\n".join(parts)


PREAMBLE = """Made by `scripts/recovery.py` from `recovery.jsonl`; no value is edited by hand.

R2 is the squared Pearson correlation of true and learned values. Cells are the mean over seeds (minimum, coefficient of
variation). *Plain* is the published read-out of the trained network, *at real frames* the same network linearised at
the recorded states instead of without input, *refit* least squares on its learned messages; no cell mixes them.
*Identifiable* is what the closed form, which knows the equations, can determine from the same recording; *closed form*
is its own result over everything. *Clusters*: accuracy of the plain read-out with its embedding / of the refitted
circuit [of the true parameters]. Published values are for natural video (DAVIS) at extent 8, which is not the same
data: they are no benchmark here. Training time is that of all seeds together. Where the *stimulus* is *unknown*, it was
learned as a field: its luminance replaces the true one in every read-out, there is no free run on another movie, and
the closed form uses a recording with the known luminance.
"""
