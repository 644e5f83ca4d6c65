"""A node of a search: one configuration, trained with several seeds and evaluated."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from flyjax.config import Experiment, Model, Simulation, Training, parse_experiment
from flyjax.data.cache import Recordings
from flyjax.data.own_recording import known_connectome
from flyjax.data.recording import Recording
from flyjax.models import Learner, make_learner
from flyjax.recovery import Evaluation, evaluate
from flyjax.recovery.evaluate import conditions
from flyjax.recovery.group import Group, group_size
from flyjax.training import Trained
from flyjax.training.hparams import held_out_of_field
from flyjax.training.sweep import relative_error, target_spread
from flyjax.utils.errors import UserError
from flyjax.utils.system import cores


@dataclass(frozen=True)
class NodeSpec:
    """One configuration and its seeds."""

    id: int
    training: Training
    seeds: tuple[int, ...]


def updated_simulation(experiment: Experiment, changes: Mapping[str, Any]) -> Simulation:
    """The experiment's simulation with some settings changed, as at the start of a block.

    **Raises:** `UserError` where a value is not valid.
    """
    data = experiment.model_dump(mode="json")
    data["simulation"] |= dict(changes)
    data["search"]["simulation_ranges"] = {}  # checked when the block was proposed
    return parse_experiment(data, "simulation").simulation


def check_readable(model: Model) -> None:
    """**Raises:** `UserError` for a model that predicts but from which W, tau and V_rest cannot be read."""
    if model.variant == "B":
        raise UserError(
            "model.variant B predicts, but its messages depend on both neurons, and no circuit can be read from it: "
            "use variant A (flyjax.training.train_sweep trains B all the same)"
        )


def learner_for(simulation: Simulation, model: Model) -> Learner:
    """The learner of the circuit that is known.

    **Raises:** `UserError` for a model from which no circuit can be read, before anything is trained.
    """
    check_readable(model)
    return make_learner(known_connectome(simulation), model)


def pool_metrics(per_seed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the metrics of a node over its seeds.

    **Returns:** each metric's mean over the seeds that have it, None where none has, and `reasons`: why a value is
    None or missing for some seeds.
    """
    out: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in dict.fromkeys(name for metrics in per_seed for name in metrics if name != "reasons"):
        known = [m[name] for m in per_seed if m.get(name) is not None]
        if name in ("computed_on", "stimulus", "ground_truth"):  # equal for all seeds
            out[name] = known[0]
            continue
        out[name] = float(np.mean(known)) if known else None
        n_missing = len(per_seed) - len(known)
        if n_missing:
            causes = [m["reasons"][name] for m in per_seed if m.get("reasons", {}).get(name)]
            share = f"missing in {n_missing} of {len(per_seed)} seeds: " if known else ""
            reasons[name] = share + (causes[0] if causes else "the training diverged")
    return {**out, "reasons": reasons}


class _Groups:
    """The groups in which the networks of some nodes are evaluated: those that follow each other and share a recording,
    at most `size`. One group at a time is known here, so that no more recordings stay in memory.
    """

    def __init__(self, learner: Learner, specs: Sequence[NodeSpec], trained: Sequence[Sequence[Trained]], size: int):
        known = [
            (k, s) for k, runs in enumerate(trained) for s, one in enumerate(runs)
            if one.diverged_at is None and one.final_loss is not None
        ]  # fmt: skip
        self._learner, self._trained = learner, trained
        self._members: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for _, shared in groupby(known, lambda place: specs[place[0]].training.noise_model_level):
            of_one_recording = list(shared)
            for begin in range(0, len(of_one_recording), size):
                members = of_one_recording[begin : begin + size]
                self._members |= dict.fromkeys(members, members)
        self._newest: tuple[list[tuple[int, int]], Group] | None = None

    def places(self, k: int, train: Recording, test: Recording) -> dict[int, tuple[Group, int]]:
        """The group and the number in it of every seed of node k that did not diverge; the nodes in order."""
        found = {}
        for s in range(len(self._trained[k])):
            if (members := self._members.get((k, s))) is None:
                continue
            if self._newest is None or self._newest[0] is not members:
                params = [self._trained[i][j].params for i, j in members]
                self._newest = members, Group(self._learner, params, train, test)
            found[s] = self._newest[1], members.index((k, s))
        return found


def evaluate_node(
    learner: Learner,
    training: Training,
    trained: Sequence[Trained],
    train: Recording,
    test: Recording,
    n_workers: int | None = None,
    places: Mapping[int, tuple[Group, int]] | None = None,
) -> tuple[list[dict[str, Any]], Evaluation | None]:
    """Evaluate the trained networks of a node, with `n_workers` threads (by default one per core).

    **Arguments:** `places`: see `evaluate`, by seed; where there is none a network is evaluated alone.

    **Returns:** the metrics of each seed, and the evaluation of the seed with the lowest training loss (a choice that
    needs no ground truth), None if all diverged.
    """
    unknown = learner.learns_stimulus
    described = conditions(train, test, unknown)
    held_out = held_out_of_field(training, len(train.voltage)) if unknown else None
    per_seed: list[dict[str, Any]] = []
    best: tuple[float, Evaluation] | None = None
    for s, one in enumerate(trained):
        cost: dict[str, Any] = {"wall_s": one.wall_s, "frames_per_s": one.frames_per_s, "n_steps": one.n_steps}
        if one.stopped_at is not None:  # by successive halving
            cost["stopped_at"] = one.stopped_at
        if one.diverged_at is not None or one.final_loss is None:
            reason = f"the training diverged at step {one.diverged_at}"
            missing = {**({} if "weight" in train.unknown else {"connectivity_R2": None}), "final_loss": None}
            per_seed.append({**described, **missing, **cost, "reasons": dict.fromkeys(missing, reason)})
            continue
        losses: dict[str, Any] = {"final_loss": one.final_loss, "final_loss_total": one.final_loss_total}
        place = (places or {}).get(s)
        options: dict[str, Any] = {"held_out": held_out, "n_workers": n_workers, "place": place}
        result = evaluate(learner, one.params, train, test, **losses, **options)
        # Unlike the loss, comparable between batch sizes and noise levels.
        error = relative_error(one.final_loss, training, train.connectome.n_neurons, target_spread(train))
        per_seed.append({**result.metrics, "final_error": error, **cost})
        if best is None or one.final_loss < best[0]:
            best = one.final_loss, result
    return per_seed, best and best[1]


def evaluate_nodes(
    learner: Learner,
    specs: Sequence[NodeSpec],
    trained: Sequence[Sequence[Trained]],
    recordings: Recordings,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[list[dict[str, Any]], Evaluation | None]]:
    """Yield `evaluate_node` of every node, in order.

    The first node is evaluated alone, as it compiles the programs that all use; then several at once, because half
    of an evaluation uses a single core, but no more than `recordings` has memory for. What an accelerator computes of
    networks that share a recording is computed together, when the first of them is evaluated. An interrupt waits for
    the evaluations in progress, as compiled code cannot be stopped, and `report` announces that.
    """
    n_workers = max(1, min(cores(), len(specs) - 1, recordings.capacity))
    threads_each = max(1, cores() // n_workers)
    pending: deque[Future] = deque()
    groups: _Groups | None = None
    # With one BLAS thread each, sums do not depend on the number of workers.
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as threads:
        try:
            for k, (spec, runs) in enumerate(zip(specs, trained, strict=True)):
                if len(pending) == n_workers:
                    yield pending.popleft().result()
                # Here and not in the thread: `Recordings` is not safe to share.
                train, test = recordings.train(spec.training.noise_model_level), recordings.test
                arguments, job = (learner, spec.training, runs, train, test), evaluate_node
                if k == 0 and (size := group_size(learner, train, test)) > 1:
                    groups = _Groups(learner, specs, trained, size)
                if groups is not None:
                    job = partial(evaluate_node, places=groups.places(k, train, test))
                if k == 0:
                    yield job(*arguments)
                else:
                    pending.append(threads.submit(job, *arguments, threads_each))
            while pending:
                yield pending.popleft().result()
        except BaseException:
            if [job for job in pending if not job.cancel() and not job.done()]:
                report("stopping once the evaluations in progress are finished")
            raise
