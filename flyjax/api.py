"""The short way in for notebooks: a few functions that join the rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flyjax.config import Model, Simulation, Training, parse_experiment
from flyjax.data.cache import Recordings
from flyjax.data.recording import Recording
from flyjax.experiments.node import NodeSpec, check_readable, evaluate_nodes, learner_for, pool_metrics
from flyjax.models import Learner, make_learner
from flyjax.training import Trained, train_sweep
from flyjax.utils.errors import UserError


@dataclass(frozen=True)
class CandidateResult:
    """One candidate's trainings.

    Attributes:
        metrics: mean over the seeds, by the names of metrics.json; None values have a reason.
        params: one tree of arrays per seed.
        seeds: the seeds.
        per_seed: the metrics of each seed.
        trained: losses, steps and times of each seed.
        evaluation: figures' arrays of the seed with the lowest training loss; None if all diverged.
    """

    training: Training
    metrics: dict[str, Any]
    params: list[Any]
    seeds: tuple[int, ...]
    per_seed: list[dict]
    trained: list[Trained]
    evaluation: Any
    learner: Learner


class _Given:
    """A single recording in the place of a run's recordings."""

    capacity = 1_000  # it is in memory once, however many nodes use it

    def __init__(self, recording: Recording):
        self._train, self._others = recording, Recordings(recording.simulation)

    def train(self, level: float) -> Recording:
        if level != self._train.noise_model_level:
            raise UserError(
                f"the recording has noise_model_level {self._train.noise_model_level:g}, a candidate asks for {level:g}: "
                "give the simulation instead, and each level gets its recording"
            )
        return self._train

    @property
    def test(self) -> Recording:
        return self._others.test


def _training(candidate: Mapping[str, Any] | Training) -> Training:
    if isinstance(candidate, Training):
        return candidate
    # Alone, a candidate is free of the protocol's ranges: they bind the search.
    data = {"training": dict(candidate), "search": {"ranges": {}, "simulation_ranges": {}}}
    return parse_experiment(data, "candidate").training


def train_candidates(
    simulation_or_recording: Simulation | Recording,
    candidates: Sequence[Mapping[str, Any] | Training],
    seeds: Sequence[int] = (0,),
    model: Model | None = None,
    on_progress=None,
) -> list[CandidateResult]:
    """Train K candidates x S seeds, those of one static signature in one program, and judge each.

    **Arguments:**

    - `simulation_or_recording`: a simulation gets one training recording per distinct
      `noise_model_level`; a given recording serves a single level.
    - `candidates`: training settings, as `Training` or as a dictionary of what differs from it.
    - `seeds`: of initial values and batch order, the same for every candidate.
    - `model`: shapes of the network.
    - `on_progress`: called with a `flyjax.training.Progress` after every chunk.

    **Raises:** `UserError` for a candidate that does not validate.
    """
    trainings = [_training(c) for c in candidates]
    if not trainings or not len(seeds):
        raise UserError("train_candidates needs at least one candidate and one seed")
    if isinstance(simulation_or_recording, Recording):
        recordings = _Given(simulation_or_recording)
        check_readable(model or Model())
        learner = make_learner(simulation_or_recording.connectome, model or Model())
    else:
        recordings = Recordings(simulation_or_recording)
        learner = learner_for(simulation_or_recording, model or Model())
    by_level = {t.noise_model_level: recordings.train(t.noise_model_level) for t in trainings}
    trained = train_sweep(learner, trainings, [tuple(seeds)] * len(trainings), by_level, on_progress=on_progress)
    results = []
    specs = [NodeSpec(k, training, tuple(seeds)) for k, training in enumerate(trainings)]
    for training, runs, (per_seed, evaluation) in zip(
        trainings, trained, evaluate_nodes(learner, specs, trained, recordings), strict=True
    ):
        results.append(
            CandidateResult(
                training,
                pool_metrics(per_seed),
                [r.params for r in runs],
                tuple(seeds),
                per_seed,
                runs,
                evaluation,
                learner,
            )
        )
    return results
