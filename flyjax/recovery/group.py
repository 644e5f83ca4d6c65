"""Networks that are evaluated on the same recordings, together in what a device computes.

On an accelerator a rollout waits for its kernels, whose number does not grow with the networks, and the recording is
read once for all. Least-squares solutions, mixtures and metrics are computed for each network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import jax

from flyjax.data.recording import Recording
from flyjax.models.normal_equations import table_rows
from flyjax.recovery.learned_stimulus import RecordingWithLearnedStimulus, with_learned_stimulus
from flyjax.recovery.linear_readout import LinearReadout, linear_readouts
from flyjax.recovery.metrics import evaluation_pairs
from flyjax.recovery.network_outputs import NetworkOutputs, about_grey, network_outputs, together
from flyjax.recovery.readout import N_POINTS, PublishedReadout, extract_all
from flyjax.recovery.refit import RefitEquations, refit_equations
from flyjax.recovery.rollout import Rollout, rollouts
from flyjax.training.grouping import device_memory
from flyjax.utils.system import available_ram

#: Networks evaluated together at most on an accelerator, and the share of its memory that they may take.
MAX_NETWORKS, MEMORY_SHARE = 8, 0.1


def group_size(learner, train: Recording, test: Recording) -> int:
    """The number of networks that are evaluated together, a power of two.

    One on a CPU, where a group saves a third of the rollout's time, but compiling a program for each size costs more;
    and one where each network has its own stimulus.
    """
    if jax.default_backend() == "cpu" or getattr(learner, "learns_stimulus", False):
        return 1
    n = learner.connectome.n_neurons
    tables = 16 * sum(len(rows) ** 2 for rows in table_rows(learner.connectome, 2))
    each = tables + 4 * n * (len(test.voltage) + 3 * N_POINTS)
    fit = min(MAX_NETWORKS, int(MEMORY_SHARE * min(device_memory().free, available_ram()) / each))
    return 1 << max(fit, 1).bit_length() - 1


class Group:
    """Networks of one learner with the recordings that they are evaluated on.

    Each quantity is computed at first use, for all networks; other threads wait for it. Large ones can be asked for
    once, and are then no longer held here.

    **Arguments:**

    - `networks`: their parameters; a single one where the stimulus was learned.
    - `train`, `test`: the recordings, see `flyjax.recovery.evaluate`.
    """

    def __init__(self, learner, networks: Sequence[Any], train: Recording, test: Recording):
        self.learner, self.test = learner, test
        #: The training recording with the luminance that the networks were given, or that the one has learned.
        self.recording = with_learned_stimulus(learner, networks[0], train)
        self._networks, self._lock = together(networks), RLock()
        self._found: dict[str, list[Any]] = {}

    @property
    def learns_stimulus(self) -> bool:
        return isinstance(self.recording, RecordingWithLearnedStimulus)

    def _all(self, name: str, compute: Callable[[], list[Any]]) -> list[Any]:
        with self._lock:
            if name not in self._found:
                self._found[name] = compute()
            return self._found[name]

    def _readouts(self) -> list[PublishedReadout]:
        return self._all("readout", lambda: extract_all(self.learner, self._networks, self.recording))

    def _linears(self) -> list[LinearReadout]:
        return self._all("linear", lambda: linear_readouts(self.learner, self._networks, self.recording))

    def _equations(self, n_workers: int | None) -> list[RefitEquations]:
        shared = self.learner, self._networks, self.recording, self._readouts(), self._linears()
        return refit_equations(*shared, n_workers=n_workers)

    def readout(self, k: int) -> PublishedReadout:
        return self._readouts()[k]

    def linear(self, k: int) -> LinearReadout:
        return self._linears()[k]

    def rollout(self, k: int) -> Rollout:
        """On the test recording."""
        return _taken(self._all("rollout", lambda: rollouts(self.learner, self._networks, self.test)), k)

    def equations(self, k: int, n_workers: int | None = None) -> RefitEquations:
        """Of the refit."""
        return _taken(self._all("equations", lambda: self._equations(n_workers)), k)

    def held_out(self, k: int) -> NetworkOutputs:
        """At the `evaluation_pairs` of the test recording."""
        pairs = evaluation_pairs(self.test)
        return _taken(self._all("held_out", lambda: network_outputs(self.learner, self._networks, *pairs[:2])), k)

    def grey(self, k: int) -> NetworkOutputs:
        """`about_grey` there."""
        voltage = evaluation_pairs(self.test)[0]
        return _taken(self._all("grey", lambda: about_grey(self.learner, self._networks, voltage)), k)


def _taken(values: list[Any], k: int) -> Any:
    value, values[k] = values[k], None
    return value
