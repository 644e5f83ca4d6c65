"""Results tables as Markdown, drawn from the journal of finished rows alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flyjax.config import content_hash
from flyjax.experiments.recovery_table import Row, Table
from flyjax.recovery.model_selection import selection
from flyjax.utils.format import MISSING, markdown_table
from flyjax.utils.metric_names import BLIND_CRITERIA, QUANTITIES

Done = Sequence[tuple[Row, Mapping]]  # rows with their lines of the journal
Column = tuple[str, Callable[[Row, Mapping], str]]  # head, and the cell of a row


def over_seeds(event: Mapping, name: str) -> np.ndarray:
    """The values of a metric over the seeds that have it."""
    return np.array([seed[name] for seed in event["per_seed"] if name in seed])


def _spread(values: np.ndarray) -> str:
    """mean (min, CV in percent)."""
    if len(values) < 2:
        return _short(values[0]) if len(values) else MISSING
    mean = values.mean()
    cv = f", {100 * values.std(ddof=1) / mean:.1f} %" if mean > 0 else ""
    return f"{_short(mean)} ({_short(values.min())}{cv})"


def _short(value: float) -> str:
    digits = 5 if 0.9995 <= value < 1 else 3
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def _metric(head: str, name: str, n_seeds: int | None = None) -> Column:
    """A metric over the first `n_seeds` seeds, or all."""
    return head, lambda row, event: _spread(over_seeds(event, name)[:n_seeds])


def _quantities(suffix: str, head: str = "{}", n_seeds: int | None = None) -> list[Column]:
    """The R2 of W, tau and V_rest."""
    return [_metric(head.format(symbol), name + suffix, n_seeds) for name, symbol in QUANTITIES.items()]


def _seeds(row: Row, event: Mapping) -> str:
    return f"{len(event['per_seed'])}" + (f" ({event['diverged']} diverged)" if event["diverged"] else "")


def _identifiable(row: Row, event: Mapping) -> str:
    shares = [over_seeds(event, f"identifiable_{n}") for n in ("edges", "neurons", "weight_variance")]
    return " / ".join(f"{values[0]:.1%}" if len(values) else MISSING for values in shares)


def _clusters(head: str, name: str) -> Column:
    """Accuracy of the plain read-out, of the refitted circuit, and of the true parameters."""
    columns = _metric("", name), _metric("", f"{name}_refit"), _metric("", f"{name}_true", 1)
    return head, lambda row, event: "{} / {} [{}]".format(*(cell(row, event) for _, cell in columns))


def _inliers(head: str, name: str) -> Column:
    """R2 to the identity line without outliers, and their share."""

    def cell(row: Row, event: Mapping) -> str:
        left_out = over_seeds(event, f"{name}_outliers")
        share = f", {left_out.mean():.1%} left out" if len(left_out) else ""
        return _spread(over_seeds(event, f"{name}_inliers")) + share

    return head, cell


PART = "{}, identifiable"
PUBLISHED: Column = ("published (DAVIS, extent 8)", lambda row, event: row.published or "")
LESIONED = _metric("", "lesion_R2")[1]
#: The tables of a section: title, columns, and the metric of the rows that are in it.
TABLES: tuple[tuple[str, list[Column], str], ...] = (
    (
        "plain",
        [
            *[("seeds", _seeds), *_quantities(""), *_quantities("_identifiable", PART)],
            *[_metric("free run", "test_R2"), PUBLISHED],
        ],
        "",
    ),
    ("at real frames", [*_quantities("_data"), *_quantities("_data_identifiable", PART)], ""),
    (
        "refit",
        [
            *[*_quantities("_refit"), *_quantities("_refit_identifiable", PART)],
            *_quantities("_ceiling", "{}, closed form", 1),  # depends on the recording, not on the seed
        ],
        "",
    ),
    (
        "refit, corrected for measurement noise",
        [
            *[*_quantities("_refit_corrected"), *_quantities("_refit_corrected_identifiable", PART)],
            _metric("slope of W", "connectivity_R2_refit_corrected_slope"),
        ],
        "connectivity_R2_refit_corrected",
    ),
    (
        "R2 to the identity line without outliers",
        [
            *[_inliers("tau", "tau_R2"), _inliers("V_rest", "V_rest_R2")],
            *[_inliers("tau, refit", "tau_R2_refit"), _inliers("V_rest, refit", "V_rest_R2_refit")],
        ],
        "V_rest_R2_inliers",
    ),
    (
        "unknown stimulus: luminance of the field",
        [
            _metric("held-out frames", "external_input_R2"),
            _metric("training frames", "external_input_R2_training"),
            _metric("another movie, inverting f", "external_input_R2_inverted"),
        ],
        "external_input_R2_training",
    ),
    (
        "",
        [
            ("identifiable edges / neurons / variance of W", _identifiable),
            _metric("slope of W", "connectivity_R2_slope"),
            _metric("slope, refit", "connectivity_R2_refit_slope"),
            _clusters("clusters / refit [true]", "cluster_accuracy"),
            _clusters("clusters 65 / refit [true]", "cluster_accuracy_65"),
            ("free run, lesioned", lambda row, event: LESIONED(row, event) if row.lesion else MISSING),
            ("training / steps", lambda row, event: f"{event['train_s']:.0f} s / {event['n_steps']:,}"),
        ],
        "",
    ),
)
CRITERIA = ("ground truth", "free run", "one-step prediction", "training loss")


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


def _tables(done: Done) -> Iterator[str]:
    """The tables of a section that have rows."""
    for title, columns, metric in TABLES:
        if not title and (cells := blind_choices(done)):
            yield markdown_table(["W of the network selected by", "networks", *CRITERIA], cells)
        if not any(row.published for row, _ in done):
            columns = [column for column in columns if column is not PUBLISHED]
        chosen = [(row, e) for row, e in done if not metric or len(over_seeds(e, metric))]
        if chosen:
            cells = [[row.name, *(cell(row, e) for _, cell in columns)] for row, e in chosen]
            yield markdown_table([title, *(head for head, _ in columns)], cells)


MANY = 6  # rows of a group that were not run, from which on only their number is stated


def _in_groups(names: Sequence[str]) -> str:
    """Names, those of a group (before the first comma) of many as their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(",")[0], []).append(name)
    many = [f"{len(own)} rows of {group}" for group, own in groups.items() if len(own) >= MANY]
    return "; ".join([*many, *(name for own in groups.values() if len(own) < MANY for name in own)])


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
            parts.append(f"Not run: {_in_groups(missing)}.\n")
        if done:
            parts.append(_provenance(table, done))
            parts += _tables(done)
    return "\n".join(parts)


PREAMBLE = """Made by `scripts/recovery.py` from the journal of the same name; no value is edited by hand.

R2 is the squared Pearson correlation of true and learned values. Cells are the mean over seeds (minimum, coefficient of
variation). *Plain* is the published read-out of the trained network, *at real frames* the same network linearised at
the recorded states instead of without input, *refit* least squares on its learned messages; no cell mixes them.
*Identifiable* is what the closed form, which knows the equations, can determine from the same recording; *closed form*
is its own result over everything. *Clusters*: accuracy of the plain read-out with its embedding / of the refitted
circuit [of the true parameters]. Published values are for natural video (DAVIS) at extent 8: beside built-in scenes or
another extent they are no benchmark. Training time is that of all seeds together. Where the *stimulus* is *unknown*, it
was learned as a field: its luminance replaces the true one in every read-out, there is no free run on another movie,
and the closed form uses a recording with the known luminance.
"""
