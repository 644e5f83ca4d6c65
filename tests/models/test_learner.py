"""Learners are values: equal for equal circuits and models."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model
from flyjax.models import make_learner


def copied(connectome, **changes):
    """Another object with the same content."""
    return dataclasses.replace(connectome, senders=connectome.senders.copy(), **changes)


def test_learners_of_equal_circuits_are_equal():
    circuit = build_connectome(0)
    one, other = make_learner(circuit, Model(width=8)), make_learner(copied(circuit), Model(width=8))
    assert one == other and hash(one) == hash(other) and one is not other
    assert one != make_learner(circuit, Model(width=9))
    assert one != make_learner(circuit, Model(width=8), segment_rows=64)
    for name in ("senders", "sign", "inputs", "cell_type"):
        changed = getattr(circuit, name).copy()
        changed[0] += 1
        assert one != make_learner(dataclasses.replace(circuit, **{name: changed}), Model(width=8)), name


def test_a_learner_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_learner(build_connectome(0), Model(width=8)).config = Model()


def test_hashing_reads_no_array():
    circuit = copied(build_connectome(0))
    learner = make_learner(circuit, Model(width=8))
    before = hash(learner)
    circuit.senders.setflags(write=True)
    circuit.senders[0] += 1
    assert hash(learner) == before


def test_equal_learners_share_a_program():
    circuit, traces = build_connectome(0), []

    def forward(learner, params, voltage, luminance):
        traces.append(learner)
        return learner.derivative(params, voltage, luminance)

    compiled = jax.jit(forward, static_argnums=0)
    batch = np.zeros((1, circuit.n_neurons), np.float32), np.zeros((1, circuit.n_columns), np.float32)
    for c in (circuit, copied(circuit)):
        learner = make_learner(c, Model(width=8))
        compiled(learner, learner.init(jax.random.key(0)), *batch)
    assert len(traces) == 1


def test_an_unused_learner_frees_its_circuit():
    circuit = copied(build_connectome(0))
    learner = make_learner(circuit, Model(width=8))
    learner.init(jax.random.key(0))
    reference = weakref.ref(circuit)
    del circuit, learner
    gc.collect()
    assert reference() is None
