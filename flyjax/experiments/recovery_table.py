"""Rows of a results table: named settings, each trained with its seeds, journaled, and rendered as Markdown.

A table is a YAML file: a base experiment and rows that say what differs from it.

    name: recovery_learner
    title: What makes the learner reliable
    base: {simulation: {...}, model: {...}, training: {...}}
    rows:
      - {name: published recipe, set: {model.width: 80}, published: "W .985"}

Every finished row is one line of a journal, with the configuration that made it; a row whose
configuration is already there is not trained again, and the table is drawn from the journal alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from flyjax.config import Experiment, content_hash, parse_experiment, read_yaml
from flyjax.data.cache import Recordings
from flyjax.experiments.node import evaluate_node, learner_for
from flyjax.experiments.run_dir import checkpoint_folder, remove_checkpoints
from flyjax.ground_truth import checkpoint_file
from flyjax.recovery.lesion import lesion_metrics
from flyjax.recovery.model_selection import selection
from flyjax.training import train_sweep
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.jsonl import open_lines, write_line

#: The three recovered quantities, by metric and heading.
QUANTITIES = {"connectivity_R2": "W", "tau_R2": "tau", "V_rest_R2": "V_rest"}
#: Kept of every seed: these for each quantity ...
SUFFIXES = (
    "", "_slope", "_identifiable", "_data", "_data_identifiable", "_refit", "_refit_slope", "_refit_identifiable",
    "_ceiling", "_ceiling_identifiable", "_refit_corrected", "_refit_corrected_slope", "_refit_corrected_identifiable", "_ceiling_corrected_identifiable",
)  # fmt: skip
#: ... and these.
OTHERS = (
    "cluster_accuracy", "cluster_accuracy_65", "cluster_accuracy_true", "cluster_accuracy_65_true", "cluster_accuracy_refit",
    "cluster_accuracy_65_refit", "ARI", "test_R2", "test_pearson",
    "one_step_R2", "external_input_R2", "final_loss", "identifiable_edges", "identifiable_neurons", "identifiable_weight_variance",
    "lesion_R2", "lesion_pearson", "external_input_R2_training", "external_input_R2_inverted",
)  # fmt: skip


class Row(BaseModel):
    """One setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    set: dict[str, Any] = Field(default_factory=dict, description="section.key: value, against the base")
    published: str | None = Field(None, description="the published figures of this setting, on other data")
    lesion: float = Field(0.0, ge=0, lt=1, description="share of synapses cut in fly and network for one more free run")


#: Of an experiment, what a table may set.
SECTIONS = ("simulation", "model", "training", "search")


class Table(BaseModel):
    """Rows against a base."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    title: str
    text: str = Field("", description="a paragraph above the table")
    base: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]

    @field_validator("base")
    @classmethod
    def _known_sections(cls, base):
        for section in base:
            if section not in SECTIONS:
                raise ValueError(
                    f"no section {section!r}.{nearest(section, SECTIONS)} There are {', '.join(SECTIONS)}."
                )
        return base

    @field_validator("rows")
    @classmethod
    def _one_of_each(cls, rows):
        names = [row.name for row in rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rows are called {twice[0]!r}: rename one")
        return rows

    def experiment(self, row: Row, overrides: Mapping[str, Any] = {}) -> Experiment:
        """The experiment of a row. **Raises:** `UserError` for an unknown key or value, naming the row."""
        where = f"{self.name}, row {row.name!r}"
        data = json.loads(json.dumps({**self.base, "name": self.name}))
        # Rows are no proposals: the protocol's ranges do not bind them.
        data["search"] = {**data.get("search", {}), "ranges": {}, "simulation_ranges": {}}
        for key, value in {**row.set, **overrides}.items():
            section, _, name = key.partition(".")
            if not name:
                raise UserError(f"{where}: {key!r} is not section.key")
            if section not in SECTIONS:
                raise UserError(
                    f"{where}: {key!r}: no section {section!r}.{nearest(section, SECTIONS)} There are {', '.join(SECTIONS)}."
                )
            data.setdefault(section, {})[name] = value
        return parse_experiment(data, where)


def load_table(path: Path) -> Table:
    """**Raises:** `UserError`, one line, for a missing or invalid file."""
    if not Path(path).is_file():
        raise UserError(f"no table {path}")
    try:
        content = read_yaml(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a table is a mapping with {', '.join(Table.model_fields)}; this is a {type(content).__name__}"
        )
    try:
        return Table.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        known = Row.model_fields if first["loc"][0] == "rows" else Table.model_fields
        hint = (
            f".{nearest(first['loc'][-1], known)} Known: {', '.join(known)}."
            if first["type"] == "extra_forbidden"
            else ""
        )
        raise UserError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}{hint}"
        ) from None


def chosen(tables: Sequence[Table], parts: Sequence[str]) -> list[tuple[Table, Row]]:
    """Rows whose name contains one of `parts`, all without any.

    **Raises:** `UserError` for a part that is in no row's name, naming the rows.
    """
    every = [(table, row) for table in tables for row in table.rows]
    for part in parts:
        if not any(part in row.name for _, row in every):
            names = list(dict.fromkeys(row.name for _, row in every))
            raise UserError(
                f"--row {part!r}: no row of {', '.join(t.name for t in tables)} has that in its name.{nearest(part, names)} Rows: {'; '.join(names)}"
            )
    return [(table, row) for table, row in every if not parts or any(part in row.name for part in parts)]


def identity(experiment: Experiment, row: Row) -> str:
    """Equal for rows that would train and judge the same; settings that later versions add do not count at their defaults."""
    what = experiment.model_dump(mode="json", exclude_defaults=True)
    return content_hash({k: what.get(k, {}) for k in ("simulation", "model", "training")}, row.lesion)


def read_journal(path: Path) -> list[dict]:
    """Finished rows, the newest of each identity last; a torn last line is dropped."""
    if not Path(path).is_file():
        return []
    rows, lines = {}, Path(path).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            identity = event["identity"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not a finished row: repair or remove that line") from None
        rows.pop(identity, None)
        rows[identity] = event
    return list(rows.values())


def run_row(
    table: Table, row: Row, experiment: Experiment, work: Path, machine: dict, on_progress: Callable | None = None
) -> dict:
    """Record, train and judge one row.

    `machine`: what it runs on and the commit of the code, kept as they are.

    **Returns:** its line of the journal.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    training, seeds = experiment.training, tuple(range(experiment.training.n_seeds))
    if row.lesion and experiment.model.stimulus == "field":
        raise UserError(
            f"{table.name}, row {row.name!r}: a free run after a lesion needs a stimulus that is given: set lesion to 0"
        )
    recordings = Recordings(experiment.simulation, Path(work) / "recordings", experiment.search.max_disk_gb)
    train, test = recordings.train(training.noise_model_level), recordings.test
    learner = learner_for(experiment.simulation, experiment.model)
    start = time.perf_counter()
    trained = train_sweep(
        learner,
        [training],
        [seeds],
        {training.noise_model_level: train},
        checkpoint_dir=checkpoint_folder(work),
        checkpoint_every=training.checkpoint_every,
        on_progress=on_progress,
    )[0]
    # Of a training that went on from a checkpoint the clock saw the end alone; its programs know of the beginning. Lanes
    # of one program have the same seconds, programs run one after the other.
    train_s = max(time.perf_counter() - start, sum({one.wall_s for one in trained}))
    per_seed, _ = evaluate_node(learner, training, trained, train, test)
    if row.lesion:
        for metrics, one in zip(per_seed, trained, strict=True):
            if one.diverged_at is None:
                found, _ = lesion_metrics(learner, one.params, test, row.lesion)
                metrics.update(found.values)
    remove_checkpoints(work)
    names = [q + s for q in QUANTITIES for s in SUFFIXES] + list(OTHERS)
    kept = [{n: float(f"{m[n]:.6g}") for n in names if m.get(n) is not None} for m in per_seed]
    parameters = experiment.simulation.parameters
    read = (
        {}
        if parameters == "sampled"
        else {"parameters_sha256": hashlib.sha256(checkpoint_file(parameters).read_bytes()).hexdigest()[:16]}
    )
    return {
        "schema": 1,
        "event": "row_finished",
        "identity": identity(experiment, row),
        "table": table.name,
        "row": row.name,
        "config": experiment.model_dump(mode="json", include={"simulation", "model", "training"}),
        "per_seed": kept,
        "diverged": sum(one.diverged_at is not None for one in trained),
        "n_steps": trained[0].n_steps,
        "train_s": round(train_s, 1),
        "wall_s": round(time.perf_counter() - begin, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        **read,
        **machine,
    }


def append(path: Path, event: dict) -> None:
    """One line, on disk before this returns; what a kill left of the line before is cut off."""
    with open_lines(path) as file:
        write_line(file, event, sync=True)


def found(tables: Sequence[Table], done: Mapping[str, dict]) -> list[tuple[Table, dict[str, dict]]]:
    """What `render` takes: each table with the finished rows (`identity -> event`) that are its own."""
    return [
        (t, {row.name: done[key] for row in t.rows if (key := identity(t.experiment(row), row)) in done})
        for t in tables
    ]


def over_seeds(event: dict, name: str) -> np.ndarray:
    """A metric of every seed that has it."""
    return np.array([seed[name] for seed in event["per_seed"] if name in seed])


def _spread(values: np.ndarray) -> str:
    """mean (min); CV in percent."""
    if not len(values):
        return "–"
    if len(values) == 1:
        return _short(values[0])
    mean = values.mean()
    cv = f", {100 * values.std(ddof=1) / mean:.1f} %" if mean > 0 else ""
    return f"{_short(mean)} ({_short(values.min())}{cv})"


def _short(value: float) -> str:
    digits = 5 if 0.9995 <= value < 1 else 3
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.3f}"


def _cells(event: dict, suffix: str) -> list[str]:
    return [_spread(over_seeds(event, name + suffix)) for name in QUANTITIES]


def _share(event: dict, name: str) -> str:
    values = over_seeds(event, name)
    return f"{values[0]:.1%}" if len(values) else "–"


def blind_choices(done: Sequence[tuple[Row, dict]]) -> list[list[str]]:
    """What choosing among the networks of one simulation costs where the truth is not known, W R2: cells of a table.

    All seeds of all rows on one simulation compete, if there are at least three.
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
        truth = found.pop("connectivity_R2", None)
        if truth is None or truth["of"] < 3:
            continue
        names = list(dict.fromkeys(name for name, _ in networks))
        label = names[0] + (f" and {len(names) - 1} more rows" if len(names) > 1 else "")
        picked = (found.get(criterion) for criterion in ("test_R2", "one_step_R2", "final_error"))
        cells.append(
            [
                label,
                str(truth["of"]),
                _short(truth["value"]),
                *(f"{_short(r['value'])} (rank {r['rank']})" if r else "–" for r in picked),
            ]
        )
    return cells


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def line(event: dict) -> str:
    """One line for the terminal."""
    cells = [
        f"{name} {_spread(over_seeds(event, q))}, refit {_spread(over_seeds(event, q + '_refit_identifiable'))}"
        for q, name in QUANTITIES.items()
    ]
    return "; ".join(cells) + f"; {event['train_s']:.0f} s"


def _made_with(event: dict) -> str:
    """Hardware, versions, date and commit of a row in one line."""
    parts = [event["hardware"], event["device"], f"JAX {event['jax']}", event["date"]]
    parts.append(f"commit {event['commit']}" if "commit" in event else "of a commit that was not kept")
    if "parameters_sha256" in event:
        parts.append(f"parameters from a file of SHA-256 {event['parameters_sha256']}…")
    return ", ".join(parts)


def _provenance(table: Table, done: Sequence[tuple[Row, dict]]) -> str:
    """What the rows were made with: once where it is the same for all, else the rows of each."""
    groups: dict[str, list[str]] = {}
    for row, event in done:
        groups.setdefault(_made_with(event), []).append(row.name)
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


def render(tables: Sequence[tuple[Table, Mapping[str, dict]]]) -> str:
    """recovery.md: every table with the rows found for it (`row name -> event`), missing ones named as such.

    Values are R2 over the seeds: mean (minimum, coefficient of variation).
    """
    parts = ["# What is recovered, and what is not\n", PREAMBLE]
    for table, found in tables:
        events = [(row, found.get(row.name)) for row in table.rows]
        done = [(row, event) for row, event in events if event]
        parts.append(f"## {table.title}\n\n{table.text.strip()}\n" if table.text else f"## {table.title}\n")
        missing = [row.name for row, event in events if not event]
        if missing:
            parts.append(f"Not run: {', '.join(missing)}.\n")
        if not done:
            continue
        parts.append(_provenance(table, done))
        plain, read, refitted, around = [], [], [], []
        for row, e in done:
            seeds = f"{len(e['per_seed'])}" + (f" ({e['diverged']} diverged)" if e["diverged"] else "")
            plain.append(
                [
                    row.name,
                    seeds,
                    *_cells(e, ""),
                    *_cells(e, "_identifiable"),
                    _spread(over_seeds(e, "test_R2")),
                    row.published or "",
                ]
            )
            read.append([row.name, *_cells(e, "_data"), *_cells(e, "_data_identifiable")])
            refitted.append(
                [
                    row.name,
                    *_cells(e, "_refit"),
                    *_cells(e, "_refit_identifiable"),
                    *_cells({"per_seed": e["per_seed"][:1]}, "_ceiling"),
                ]
            )
            clusters = [_spread(over_seeds(e, n)) for n in ("cluster_accuracy", "cluster_accuracy_65")]
            again = [_spread(over_seeds(e, n)) for n in ("cluster_accuracy_refit", "cluster_accuracy_65_refit")]
            truth = [_spread(over_seeds(e, n)[:1]) for n in ("cluster_accuracy_true", "cluster_accuracy_65_true")]
            slopes = [_spread(over_seeds(e, f"connectivity_R2{s}_slope")) for s in ("", "_refit")]
            coverage = " / ".join(_share(e, f"identifiable_{n}") for n in ("edges", "neurons", "weight_variance"))
            lesion = [_spread(over_seeds(e, "lesion_R2"))] if row.lesion else ["–"]
            time_ = f"{e['train_s']:.0f} s / {e['n_steps']:,}"
            around.append(
                [
                    row.name,
                    coverage,
                    *slopes,
                    *(f"{a} / {r} [{b}]" for a, r, b in zip(clusters, again, truth)),
                    *lesion,
                    time_,
                ]
            )
        heads = list(QUANTITIES.values())
        published = any(row.published for row, _ in done)
        head = [
            "plain",
            "seeds",
            *heads,
            *(f"{h}, identifiable" for h in heads),
            "free run",
            "published (DAVIS, not the same data)",
        ]
        parts.append(
            _markdown(head if published else head[:-1], plain if published else [p[:-1] for p in plain]) + "\n"
        )
        parts.append(_markdown(["at real frames", *heads, *(f"{h}, identifiable" for h in heads)], read) + "\n")
        parts.append(
            _markdown(
                ["refit", *heads, *(f"{h}, identifiable" for h in heads), *(f"{h}, closed form" for h in heads)],
                refitted,
            )
            + "\n"
        )
        noisy = [[row.name, *_cells(e, "_refit_corrected"), *_cells(e, "_refit_corrected_identifiable"), _spread(over_seeds(e, "connectivity_R2_refit_corrected_slope"))]
                 for row, e in done if len(over_seeds(e, "connectivity_R2_refit_corrected"))]  # fmt: skip
        if noisy:
            parts.append(
                _markdown(
                    [
                        "refit, measurement noise taken out",
                        *heads,
                        *(f"{h}, identifiable" for h in heads),
                        "slope of W",
                    ],
                    noisy,
                )
                + "\n"
            )
        unknown = [[row.name, *(_spread(over_seeds(e, f"external_input_R2{s}")) for s in ("", "_training", "_inverted"))]
                   for row, e in done if len(over_seeds(e, "external_input_R2_training"))]  # fmt: skip
        if unknown:
            head = [
                "stimulus unknown: light of the field",
                "frames held out",
                "frames trained on",
                "another movie, by inverting f",
            ]
            parts.append(_markdown(head, unknown) + "\n")
        blind = blind_choices(done)
        if blind:
            head = [
                "W of the network chosen",
                "networks",
                "on the truth",
                "by the free run",
                "by one-step prediction",
                "by the training loss",
            ]
            parts.append(_markdown(head, blind) + "\n")
        head = [
            "",
            "identifiable edges / neurons / variance of W",
            "slope of W",
            "slope, refit",
            "clusters / refit [true]",
            "clusters 65 / refit [true]",
            "free run, lesioned",
            "training / steps",
        ]
        parts.append(_markdown(head, around) + "\n")
    return "\n".join(parts)


PREAMBLE = """Made by `scripts/recovery.py` from `recovery.jsonl` beside it; nothing here is typed by hand.

R2 is the squared Pearson correlation of true and learned values. Cells are the mean over seeds (minimum, coefficient of
variation). *Plain* is the published read-out of the trained network, *at real frames* the same network linearised where the
recording is instead of without input, *refit* least squares on its learned messages; no cell mixes them. *Identifiable* is
what the closed form, which knows the equations, can tell from the same recording; *closed form* is its own result over
everything. *Clusters*: accuracy of the plain read-out with its embedding / of the refitted circuit [of the true parameters].
Published figures are of natural video (DAVIS) at extent 8: not the same data, and never a win or a loss here. Training time
is that of all seeds together. Where the *stimulus* is *unknown*, a field learned it: its light stands in for the true one in
every read-out, there is no free run on another movie, and the closed form is of a recording with the light known.
"""
