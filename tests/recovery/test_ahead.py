"""The programs of an evaluation, compiled while networks are trained."""

import importlib
from collections import Counter

import jax
import numpy as np
import pytest
from support.recovery_fixtures import recordings

from flyjax.config import Model
from flyjax.models import make_learner
from flyjax.recovery import evaluate
from flyjax.recovery.ahead import compile_evaluation_ahead


@pytest.mark.parametrize("variant", ["A", "known_ode"])
def test_an_evaluation_compiles_nothing_again(variant, monkeypatch):
    begun, compiled = [], Counter()
    for name in ("clusters", "network_outputs", "rollout"):
        module = importlib.import_module(f"flyjax.recovery.{name}")  # there are functions of these names
        monkeypatch.setattr(module, "compile_ahead", lambda program, lowered: begun.append(lowered))
    train, test = recordings()
    learner = make_learner(train.connectome, Model(width=7, variant=variant))
    compile_evaluation_ahead(learner)
    for lowered in begun:
        lowered().compile()

    def count(name, seconds, **more):
        compiled[more.get("fun_name")] += name.endswith("backend_compile_duration")

    params = jax.tree.map(np.asarray, learner.init(jax.random.key(0)))
    jax.monitoring.register_event_duration_secs_listener(count)
    evaluate(learner, params, train, test, with_refit=False, with_ceiling=False)
    for lowered in begun:  # as in the next iteration of a search
        lowered().compile()
    jax.monitoring.unregister_event_duration_listener(count)
    assert len(begun) == 3
    names = ("_outputs", "_advance", "_expectation_maximization")
    assert not {name: compiled[f"jit({name})"] for name in names if compiled[f"jit({name})"]}
