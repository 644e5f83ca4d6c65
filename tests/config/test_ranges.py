"""Whatever range a config may have, every value that a search draws from it can be trained."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyjax.config import SIMULATION_TUNABLE, TUNABLE, Simulation, Training, parse_experiment
from flyjax.config.ranges import at, coerce, extreme, perturb, sample, unit
from flyjax.utils.errors import UserError

numbers = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 3, 4, 10, 64, 65, 1000, 10**9, 10**30, 10**400, True, None, "4", 1e-38, 1e-45, 1e38]),
    st.floats(),
    st.integers(-5, 100),
    st.floats(1e-6, 1e3),
)
bounds = st.tuples(numbers, numbers).map(lambda ends: dict(zip(("min", "max"), ends)))
spans = st.one_of(
    st.tuples(bounds, st.sampled_from(["log", "linear", "int", "choice"])).map(lambda s: {**s[0], "scale": s[1]}),
    st.lists(numbers, max_size=4).map(lambda values: {"scale": "choice", "values": values}),
)


@settings(deadline=None, max_examples=400)
@given(st.sampled_from([*TUNABLE, *SIMULATION_TUNABLE]), spans, st.data())
def test_a_range_is_refused_or_all_its_values_can_be_trained(name, span, data):
    model, section, key = (
        (Training, "training", "ranges") if name in TUNABLE else (Simulation, "simulation", "simulation_ranges")
    )
    inside = data.draw(st.sampled_from([v for v in (span.get("min"), *span.get("values", ())) if v is not None] or [1]))
    free = {"ranges": {}, "simulation_ranges": {}}
    try:
        experiment = parse_experiment({section: {name: inside}, "search": {**free, key: {name: span}}})
    except UserError as refused:
        assert "\n" not in str(refused)
        return
    known, rng = getattr(experiment.search, key)[name], np.random.default_rng(0)
    first = getattr(getattr(experiment, section), name)
    drawn = [at(known, place) for place in (0.0, 0.3, 1.0)] + [sample(known, rng) for _ in range(5)]
    drawn += [perturb(known, first, rng, direction=way) for way in (-1, 0, 1)]
    drawn += [v for v in (extreme(known, first, factor) for factor in (0.1, 10.0)) if v is not None]
    for value in drawn:
        assert known.contains(value) and 0 <= unit(known, value) <= 1
        trained = getattr(model.model_validate({name: value}), name)
        assert coerce(known, json.loads(json.dumps(value))) == value and float(value) == float(trained)
        if name in TUNABLE:
            assert np.isfinite(np.float32(trained)) and (not name.startswith("learning") or np.float32(trained) > 0)


def test_whole_numbers_beyond_those_that_floats_hold_are_refused():
    span = {"min": 1.0, "max": 1e30, "scale": "int"}
    with pytest.raises(UserError, match=r"coeff_W_L1.*whole numbers"):
        parse_experiment({"search": {"ranges": {"coeff_W_L1": span}}})
