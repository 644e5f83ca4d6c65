"""Compare proposers from the same root with equal budgets and seeds, on synthetic landscapes and on real trainings.

Every (landscape, seed, proposer) is a row. Finished rows and trainings are stored in a folder, so that the same call
continues after an interruption.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from flyjax.config import Experiment, Training, content_hash, parse_experiment
from flyjax.data.cache import Recordings
from flyjax.data.splits import cache_key
from flyjax.experiments.node import learner_for, pool_metrics
from flyjax.landscape import CLASSES, FAST, Benchmark, Trainings, benchmark, fit
from flyjax.landscape.classes import classify
from flyjax.landscape.study import METRICS
from flyjax.recovery import extract
from flyjax.recovery.metrics import Metrics, circuit_metrics
from flyjax.search.iteration import IterationPlan
from flyjax.search.journal.journal import read_journal
from flyjax.search.journal.state import Node, State
from flyjax.search.llm.client import FREE
from flyjax.search.loop import run_loop
from flyjax.search.policy.measures import comparable_rewards
from flyjax.search.policy.ucb import score
from flyjax.search.proposals.types import Paused, Proposer
from flyjax.search.proposers import make_proposer
from flyjax.search.proposers.replay import ReplayProposer
from flyjax.search.synthetic import REAL, STUDY, STUDY_TUNING, evaluate_plan, make_landscape
from flyjax.stimulus import DATA_SETS
from flyjax.training import train_sweep
from flyjax.utils.atomic_io import open_lines, write_json, write_line
from flyjax.utils.errors import UserError
from flyjax.utils.run_directory import RunDirectory

Row = dict[
    str, Any
]  # landscape, seed, proposer, nodes, wall_s, root, curve, fresh, root_fresh: see flyjax.report.proposers

#: Seeds that evaluate the final configuration of a search of real trainings; those of a run are large hashes.
FRESH_SEEDS = tuple(range(10))


class OutOfTime(Exception):
    """The time limit is reached; finished trainings are stored."""


def made_up_experiment(n_candidates: int, n_iterations: int) -> Experiment:
    """One block over the protocol's ranges; its simulation is never run."""
    search = {"n_candidates": n_candidates, "n_iter_block": n_iterations, "n_blocks": 1, "simulation_ranges": {}}
    return parse_experiment(
        {"name": "proposers", "simulation": {"visual_input_type": "scenes_texture"}, "search": search}
    )


class StudyLandscape:
    """One condition of the study, answered by its benchmark instead of by trainings."""

    def __init__(self, benchmark: Benchmark):
        self.benchmark = benchmark

    def observe(self, config: dict[str, Any], seed: int) -> float:
        """connectivity_R2 of one training."""
        return self.benchmark.ask(config, seed, METRICS[:1])["connectivity_R2"]

    def evaluate(self, plan: IterationPlan) -> dict[int, dict[str, Any]]:
        """The nodes of a plan, as `run_loop` wants them."""
        return evaluate_plan(self.observe, plan)

    def quality(self, node: Node) -> float:
        """The expected connectivity_R2, seeds averaged."""
        return self.benchmark.expected(node.config, METRICS[:1])["connectivity_R2"]

    def again(self, config: dict[str, Any]) -> list[float]:
        """connectivity_R2 of a configuration on `FRESH_SEEDS`."""
        return [self.observe(config, seed) for seed in FRESH_SEEDS]

    def map_quality(self, run_dir: Path) -> dict[str, float]:
        """Log loss and Brier score of a map of the nodes of a search, for the classes of the real trainings.

        None of these was a node.
        """
        found = fit(Trainings.read([run_dir]), self.benchmark.ranges, sizes=FAST)
        held_out = self.benchmark.landscape.trainings
        settings = [dict(zip(found.space.names, row)) for row in zip(*map(held_out.settings.get, found.space.names))]
        truth = np.eye(len(CLASSES))[classify(held_out.values("connectivity_R2"))]
        return class_scores(found.class_probabilities(settings), truth)


def class_scores(probabilities: Float[np.ndarray, "n 3"], truth: Float[np.ndarray, "n 3"]) -> dict[str, float]:
    """Log loss and Brier score per training; `truth` is one-hot."""
    return {
        "log_loss": float(-(truth * np.log(probabilities)).sum(1).mean()),
        "brier": float(((probabilities - truth) ** 2).sum(1).mean()),
    }


def study_landscapes(path: Path | None, tuning: bool) -> dict[str, StudyLandscape]:
    """The conditions of a study by the name of their landscape.

    **Arguments:** `tuning`: those on which proposers may be tuned (sampled circuits on built-in scenes), or all others,
    which are for final numbers alone.
    """
    out = {}
    for condition, one in benchmark(path).items():
        known = one.landscape.trainings.conditions
        is_tuning = known["ground_truth"][0] == "sampled" and known["stimulus"][0] not in DATA_SETS
        if is_tuning == tuning:
            out[f"{STUDY_TUNING if tuning else STUDY}: {condition}"] = StudyLandscape(one)
    if not out:
        raise UserError(f"the study has no condition for {STUDY_TUNING if tuning else STUDY} with a map yet")
    return out


class RealTrainings:
    """connectivity_R2 of real trainings, each stored under a hash of configuration and seed.

    **Arguments:** `until` is the time.monotonic() after which no training begins.
    """

    def __init__(self, experiment: Experiment, folder: Path, until: float = float("inf")):
        self.experiment, self.folder, self.until = experiment, Path(folder), until
        self.trained, self.seconds = 0, 0.0
        self._learner = learner_for(experiment.simulation, experiment.model)
        self._recordings = Recordings(experiment.simulation)

    def _path(self, training: Training, seed: int) -> Path:
        # The number of seeds and checkpoints changes no training.
        what = training.model_dump(exclude={"n_seeds", "checkpoint_every"})
        data = cache_key(self.experiment.simulation, training.noise_model_level, "train", 0)
        return self.folder / f"{content_hash(data, self.experiment.model, what, seed)}.json"

    def evaluate(self, plan: IterationPlan) -> dict[int, dict[str, Any]]:
        """The nodes of a plan, as `run_loop` wants them.

        **Raises:** `OutOfTime`.
        """
        found = self._results([(Training.model_validate(n.config), tuple(n.seeds)) for n in plan.nodes])
        out = {}
        for node, per_seed in zip(plan.nodes, found, strict=True):
            metrics = pool_metrics(per_seed)
            out[node.id] = {
                "metrics": metrics if metrics["connectivity_R2"] is not None else None,
                "reason": metrics["reasons"].get("connectivity_R2", ""),
                "per_seed": per_seed,
            }
        return out

    quality = staticmethod(score)

    def again(self, config: dict[str, Any]) -> list[float]:
        """connectivity_R2 of a configuration on `FRESH_SEEDS`; a training without one counts as 0.

        **Raises:** `OutOfTime`.
        """
        (per_seed,) = self._results([(Training.model_validate(config), FRESH_SEEDS)])
        return [one["connectivity_R2"] or 0.0 for one in per_seed]

    def _results(self, jobs: Sequence[tuple[Training, tuple[int, ...]]]) -> list[list[dict[str, Any]]]:
        """Stored results of the seeds of each job; missing ones are trained first."""
        missing = [
            (training, tuple(s for s in seeds if not self._path(training, s).is_file())) for training, seeds in jobs
        ]
        missing = [(training, seeds) for training, seeds in missing if seeds]
        if missing and time.monotonic() > self.until:
            raise OutOfTime
        self._train(missing)
        return [
            [json.loads(self._path(training, seed).read_text(encoding="utf-8")) for seed in seeds]
            for training, seeds in jobs
        ]

    def _train(self, jobs: Sequence[tuple[Training, tuple[int, ...]]]) -> None:
        if not jobs:
            return
        start = time.monotonic()
        levels = {training.noise_model_level for training, _ in jobs}
        by_level = {level: self._recordings.train(level) for level in levels}
        results = train_sweep(self._learner, [t for t, _ in jobs], [s for _, s in jobs], by_level)
        for (training, _), runs in zip(jobs, results, strict=True):
            for one in runs:
                found = Metrics.missing(["connectivity_R2"], f"the training diverged at step {one.diverged_at}")
                if one.diverged_at is None:
                    recording = by_level[training.noise_model_level]
                    found = circuit_metrics(extract(self._learner, one.params, recording).estimate, recording)
                result = {name: found.as_dict()[name] for name in ("connectivity_R2", "reasons")}
                write_json(self._path(training, one.seed), result)
                self.trained += 1
        self.seconds += time.monotonic() - start


def best_nodes(state: State) -> list[Node]:
    """The best node after each iteration: highest reward, the oldest of equal ones."""
    rewards = comparable_rewards(state.nodes.values())
    seen: list[int] = []
    out: list[Node] = []
    for number in sorted(state.iterations):
        seen += state.iterations[number].nodes
        out.append(state.nodes[max(seen, key=lambda i: (rewards[i], -i))])
    return out


PAID = ("llm", "hybrid")  # proposers whose answers cost money, and can be recorded


def transcript_of(folder: Path | None, landscape: str, seed: int, proposer: str) -> Path | None:
    """The recorded answers of a search, where `folder` has them: LANDSCAPE_SEED_PROPOSER.jsonl."""
    path = folder / f"{landscape}_{seed}_{proposer}.jsonl" if folder is not None and proposer in PAID else None
    return path if path is not None and path.is_file() else None


def one_row(
    landscape: str,
    seed: int,
    proposer: str,
    experiment: Experiment,
    real: RealTrainings | None,
    folder: Path,
    template: Path,
    transcript: Path | None = None,
    study: StudyLandscape | None = None,
) -> Row:
    """Run one search in `folder` to its end and read its curve; with a transcript its answers are played again."""
    data = experiment.model_dump(mode="json")
    # The comparison evaluates what was found by itself.
    data["search"] |= {"seed": seed, "proposer": proposer, "confirm_share": 0}
    experiment = parse_experiment(data, "comparison")
    trainings = real if landscape == REAL else study
    if trainings is not None:
        evaluate, quality = trainings.evaluate, trainings.quality
    else:
        made_up = make_landscape(landscape, seed, experiment)
        evaluate, quality = made_up.evaluate, lambda node: made_up.value(node.config) or 0.0
    run_dir, start = folder / f"{landscape}_{seed}_{proposer}", time.monotonic()
    if transcript is not None:
        asked: Proposer = ReplayProposer(experiment, run_dir, transcript)
    else:
        asked = make_proposer(proposer, experiment, run_dir)
    state = run_loop(experiment, run_dir, evaluate, asked, protocol_template=template).state
    row = {
        "landscape": landscape,
        "seed": seed,
        "proposer": proposer,
        "nodes": len(state.nodes),
        "wall_s": time.monotonic() - start,
    }
    best = best_nodes(state)
    row |= {"root": quality(state.nodes[1]), "curve": [quality(node) for node in best]}
    if trainings is not None:
        row |= {"fresh": trainings.again(best[-1].config), "root_fresh": trainings.again(state.nodes[1].config)}
    if study is not None:
        row |= {"best": study.benchmark.best, **study.map_quality(run_dir)}
    if transcript is not None and any(e["fallbacks"] for e in read_journal(run_dir) if e["event"] == "proposal"):
        row["fallbacks"] = True  # the recorded answers did not fit: another landscape, or other rules
    return row


def compare(
    cases: Iterable[tuple[str, int]],
    proposers: Sequence[str],
    experiment_of: Callable[[str], Experiment],
    folder: Path,
    template: Path,
    real: RealTrainings | None = None,
    log: Callable[[str], None] = lambda line: None,
    transcripts: Path | None = None,
    study: Mapping[str, StudyLandscape] = MappingProxyType({}),
) -> list[Row]:
    """The rows of all (landscape, seed) x proposers, those of earlier calls included; seed by seed, so that pairs
    are complete early. Ends early, with what is done, when `real` runs out of time.

    **Arguments:** `transcripts` is a folder of recorded answers (see `transcript_of`), which are played again; with it,
    searches of llm and hybrid that it does not hold are left out.
    """
    with RunDirectory(folder, "comparison"):
        return _compare(cases, proposers, experiment_of, folder, template, real, log, transcripts, study)


def _compare(cases, proposers, experiment_of, folder: Path, template: Path, real, log, transcripts, study) -> list[Row]:
    path = folder / "rows.jsonl"
    open_lines(path).close()  # removes an incomplete last line
    entries = map(json.loads, path.read_text("utf-8").splitlines())
    known: dict[str, Row] = {entry["key"]: entry["row"] for entry in entries}
    out: list[Row] = []
    for landscape, seed in cases:
        for proposer in proposers:
            experiment = experiment_of(landscape)
            played = transcript_of(transcripts, landscape, seed, proposer)
            if transcripts is not None and proposer in PAID and played is None:
                log(f"{landscape}, seed {seed}, {proposer}: left out, {transcripts} has no answers for it")
                continue
            content = [experiment.simulation, experiment.model, experiment.training, experiment.search]
            content += [Path(template).read_text("utf-8"), *([played.read_text("utf-8")] if played else [])]
            asked = study.get(landscape)
            if asked is not None:
                content += [asked.benchmark.landscape.trainings.values("connectivity_R2").tolist(), FRESH_SEEDS]
            if landscape == REAL:  # what is recorded depends on files too
                content += [FRESH_SEEDS, cache_key(experiment.simulation, 0.0, "train", 0)]
            key = content_hash(landscape, seed, proposer, *content)
            if key not in known:
                try:
                    with tempfile.TemporaryDirectory() as scratch:  # but what is paid for is kept, and goes on
                        place = folder if proposer in PAID and played is None else Path(scratch)
                        known[key] = one_row(
                            landscape, seed, proposer, experiment, real, place, template, played, asked
                        )
                except OutOfTime:
                    log(f"out of time at {landscape}, seed {seed}, {proposer}; the same command continues")
                    return out
                except Paused as error:
                    reason = str(error).removesuffix(f", or {FREE}")  # a comparison cannot use another proposer
                    raise UserError(f"{proposer} on {landscape}, seed {seed}: {reason}; nothing is lost") from None
                with open_lines(path) as file:
                    write_line(file, {"key": key, "row": known[key]}, sync=True)
            row = known[key]
            replaced = ", the rules answered where the transcript did not fit" if row.get("fallbacks") else ""
            log(
                f"{landscape}, seed {seed}, {proposer}: {row['root']:.3f} -> {row['curve'][-1]:.3f}"
                + (f", {sum(row['fresh']) / len(row['fresh']):.3f} on fresh seeds" if "fresh" in row else "")
                + f" ({row['nodes']} nodes, {row['wall_s']:.1f} s{replaced})"
            )
            out.append(row)
    return out
