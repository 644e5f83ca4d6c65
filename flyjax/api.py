"""The Python interface: train candidates and evaluate them in one call."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from flyjax.config import Model, Simulation, Training
from flyjax.data.cache import Recordings
from flyjax.data.own_recording import check_level, split_in_time
from flyjax.data.recorder import held_out
from flyjax.data.recording import Recording, load_recording
from flyjax.experiments.node import NodeSpec, check_readable, evaluate_nodes, learner_for, pool_metrics
from flyjax.models import Learner, make_learner
from flyjax.recovery.ahead import compile_evaluation_ahead
from flyjax.stimulus.registry import fingerprint
from flyjax.training import Progress, Trained, train_sweep
from flyjax.training.ahead import compile_trainings_ahead
from flyjax.utils.errors import UserError

#: The reliable learner (docs/results.md): on short trainings the published one, `Model()`, often misses V_rest.
RELIABLE = Model(width=32, units="data", activation="gelu", embedding_size=8)


@dataclass(frozen=True)
class CandidateResult:
    """One candidate's trainings.

    **Attributes:**

    - `metrics`: mean over the seeds, by the names of metrics.json; None values have a reason.
    - `params`: one tree of arrays per seed.
    - `seeds`: the seeds.
    - `per_seed`: the metrics of each seed.
    - `trained`: losses, steps and times of each seed.
    - `evaluation`: arrays for figures of the seed with the lowest training loss; None if all diverged.
    """

    training: Training
    metrics: dict[str, Any]
    params: list[Any]
    seeds: tuple[int, ...]
    per_seed: list[dict]
    trained: list[Trained]
    evaluation: Any
    learner: Learner


class _SingleRecording:
    """A given recording and its test split, with the interface of `Recordings`."""

    capacity = 1_000  # it is in memory once, however many nodes use it

    def __init__(self, recording: Recording):
        if recording.is_simulated:
            self._train, self.test = recording, held_out(recording)
        else:
            self._train, self.test = split_in_time(recording)

    def train(self, level: float) -> Recording:
        if not self._train.is_simulated:
            check_level(level)
        if level != self._train.noise_model_level:
            raise UserError(
                f"the recording has noise_model_level {self._train.noise_model_level:g}, a candidate {level:g}: "
                "pass the simulation instead, and each level gets its recording"
            )
        return self._train


def train_candidates(
    simulation_or_recording: Simulation | Recording,
    candidates: Sequence[Mapping[str, Any] | Training],
    seeds: Sequence[int] = (0,),
    model: Model | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[CandidateResult]:
    """Train K candidates x S seeds, those of one static signature in one program, and evaluate each.

    Programs are compiled once per circuit, model and static signature: later calls reuse them.

    **Arguments:**

    - `simulation_or_recording`: a simulation gets one training recording per distinct
      `noise_model_level`; a given recording serves a single level, and is evaluated on the test split of its circuit.
      Of a recording of one's own the last fifth, at most 1,000 frames, is held out; its `noise_model_level` is 0.
    - `candidates`: training settings, as `Training` or as a dictionary of what differs from its defaults.
    - `seeds`: of initial values and batch order, the same for every candidate.
    - `model`: shapes of the network; by default `RELIABLE`, not the published learner, which is `Model()`.
    - `on_progress`: called after every chunk of steps.

    **Raises:** `UserError` for a candidate that does not validate, or a recording without a held-out one
    (`flyjax.data.held_out`), before anything is trained.
    """
    if isinstance(candidates, (Mapping, Training)) or not isinstance(candidates, Sequence):
        raise UserError(f"candidates: a list of settings, for example [{{'batch_size': 2}}]; got {candidates!r:.80}")
    if isinstance(seeds, str) or not isinstance(seeds, Iterable) or not all(isinstance(s, Integral) for s in seeds):
        raise UserError(f"seeds: a list of integers, for example [0, 1]; got {seeds!r:.80}")
    # The protocol's ranges bind the search, not a candidate on its own.
    if isinstance(simulation_or_recording, Simulation) and simulation_or_recording.recording is not None:
        simulation_or_recording = load_recording(simulation_or_recording.recording)
    if isinstance(simulation_or_recording, Recording) and not simulation_or_recording.is_simulated:
        candidates = [{"noise_model_level": 0.0, **c} if isinstance(c, Mapping) else c for c in candidates]
    trainings, own_seeds = [Training.model_validate(c) for c in candidates], tuple(map(int, seeds))
    if not trainings or not own_seeds:
        raise UserError("train_candidates needs at least one candidate and one seed")
    model = model or RELIABLE
    recordings: Any
    if isinstance(simulation_or_recording, Recording):
        check_readable(model)
        learner = make_learner(simulation_or_recording.connectome, model)
        recordings = _SingleRecording(simulation_or_recording)
    else:
        learner = learner_for(simulation_or_recording, model)
        recordings = Recordings(simulation_or_recording)
        # An absent data set is an error before anything is rendered, and the training stimulus comes first.
        fingerprint(simulation_or_recording.visual_input_type, simulation_or_recording.data_path)
        n_frames = simulation_or_recording.n_observed
        compile_trainings_ahead(learner, trainings, [own_seeds] * len(trainings), n_frames)
        compile_evaluation_ahead(learner)
    _ = recordings.test  # a stimulus that is missing is an error before the training
    by_level = {t.noise_model_level: recordings.train(t.noise_model_level) for t in trainings}
    trained = train_sweep(learner, trainings, [own_seeds] * len(trainings), by_level, on_progress=on_progress)
    specs = [NodeSpec(k, training, own_seeds) for k, training in enumerate(trainings)]
    evaluated = evaluate_nodes(learner, specs, trained, recordings)
    return [
        CandidateResult(
            training,
            pool_metrics(per_seed),
            [r.params for r in runs],
            own_seeds,
            per_seed,
            runs,
            evaluation,
            learner,
        )
        for training, runs, (per_seed, evaluation) in zip(trainings, trained, evaluated, strict=True)
    ]
