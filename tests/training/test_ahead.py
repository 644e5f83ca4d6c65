"""The programs of a training, compiled before its recordings are made."""

from collections import Counter

import jax
import pytest

from flyjax.config import Model, Simulation, Training
from flyjax.data import record
from flyjax.experiments.node import learner_for
from flyjax.training import ahead, train_sweep
from flyjax.utils import distributed

SIMULATION = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=90, n_test_frames=60)
#: Two programs: one of three lanes of two noise levels, one of a single lane.
CANDIDATES = [
    Training(noise_model_level=level, batch_size=batch, data_augmentation_loop=1)
    for level, batch in ((0.05, 2), (0.1, 2), (0.05, 2), (0.05, 3))
]


@pytest.mark.parametrize("stimulus", ["given", "field"])
def test_a_training_compiles_nothing_again(stimulus, monkeypatch):
    begun, compiled = [], Counter()
    monkeypatch.setattr(ahead, "compile_ahead", lambda program, lowered: begun.append((program, lowered)))
    learner = learner_for(SIMULATION, Model(width=5, stimulus=stimulus))
    held_out = {} if stimulus == "given" else {"validation_fraction": 0.1}
    candidates = [c.model_copy(update=held_out) for c in CANDIDATES]
    ahead.compile_trainings_ahead(learner, candidates, [(1,)] * 4, SIMULATION.n_observed)
    for _, lowered in begun:
        lowered().compile()

    def count(name, seconds, **more):
        compiled[more.get("fun_name")] += name.endswith("backend_compile_duration")

    recordings = {level: record(SIMULATION, level) for level in (0.05, 0.1)}
    jax.monitoring.register_event_duration_secs_listener(count)
    train_sweep(learner, candidates, [(1,)] * 4, recordings)
    jax.monitoring.unregister_event_duration_listener(count)
    assert len({program for program, _ in begun}) == 3
    assert compiled["jit(train_lanes)"] == compiled["jit(init_state)"] == 0 < compiled["jit(_fill)"]


def test_nothing_is_begun_where_the_programs_are_not_known(monkeypatch):
    monkeypatch.setattr(ahead, "compile_ahead", lambda program, lowered: pytest.fail("it was begun"))
    learner = learner_for(SIMULATION, Model(width=5))
    ahead.compile_trainings_ahead(learner, CANDIDATES, [(1,)] * 4, 10**9)  # with targets that the step computes
    monkeypatch.setattr(distributed, "count", lambda: 2)
    ahead.compile_trainings_ahead(learner, CANDIDATES, [(1,)] * 4, 90)
