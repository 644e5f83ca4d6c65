"""The map of landscapes that are known in closed form, and of trainings that no map can be made of."""

import numpy as np
import pytest
from scipy.stats import norm
from support import analytic_landscape as known

from flyjax.landscape import CLASSES, FAST, Trainings, fit, regions
from flyjax.landscape.classes import ClassMap, reliability
from flyjax.utils.errors import UserError

RANGES = known.RANGES
NAMES = tuple(RANGES)


@pytest.fixture(scope="module")
def additive():
    return fit(known.trainings(known.additive, 0.05), RANGES, sizes=FAST)


@pytest.fixture(scope="module")
def ramp():
    return fit(known.trainings(known.ramp, known.WIDTH), RANGES, sizes=FAST)


@pytest.fixture(scope="module")
def steps():
    return fit(known.trainings(known.steps, 0.01), RANGES, sizes=FAST)


def test_importance_is_that_of_the_function(additive):
    found, total = additive.importance(), sum(known.VARIANCES.values())
    first, second, pair = (v / total for v in known.VARIANCES.values())
    expected = {NAMES[0]: first + pair, NAMES[1]: second, NAMES[2]: pair, NAMES[3]: 0, NAMES[4]: 0}
    for name, value in expected.items():
        estimate = found.total[name]
        assert abs(estimate.value - value) < 0.06 and estimate.low - 0.06 < value < estimate.high + 0.06
    assert found.first[NAMES[0]].value == pytest.approx(first, abs=0.06)
    assert found.pairs[NAMES[0], NAMES[2]].value == pytest.approx(pair, abs=0.06)
    assert found.pairs[NAMES[0], NAMES[1]].value < 0.05
    assert found.ranked()[:3] == [NAMES[0], NAMES[1], NAMES[2]]


def test_the_seeds_share_is_that_of_the_noise(additive):
    share = 0.05**2 / (0.05**2 + sum(known.VARIANCES.values()))
    noise = additive.seed_noise()
    assert noise.share.low < share < noise.share.high and noise.share.high - noise.share.low < 0.06
    assert noise.deviation.value == pytest.approx(0.05, rel=0.1)
    # What a perfect surrogate would reach for means of two seeds.
    assert additive.surrogate().attainable == pytest.approx(1 - share / 2 / (1 - share / 2), abs=0.04)


def test_predictions_of_new_configurations_are_good_and_their_intervals_calibrated(additive):
    u = np.random.default_rng(5).random((400, 5))
    u[:, 3] = 0.5
    settings = additive.space.settings(u)
    truth, found = known.additive(additive.space.places(settings)), additive.predict(settings)
    r2 = 1 - np.var(truth - found.mean) / np.var(truth)
    assert additive.surrogate().skill.low - 0.02 < r2 and r2 > 0.9
    assert 0.8 <= np.mean((found.low <= truth) & (truth <= found.high)) <= 1


def test_class_probabilities_are_those_of_the_noise(ramp):
    u = np.full((41, 5), 0.5)
    u[:, 0] = np.linspace(0, 1, 41)
    found = ramp.class_probabilities(ramp.space.settings(u))
    converged = norm.cdf((u[:, 0] - known.BOUNDARY) / known.WIDTH)
    assert np.abs(found[:, 2] - converged).mean() < 0.06
    np.testing.assert_allclose(found.sum(1), 1)
    assert ramp.class_draws(ramp.space.settings(u)).shape == (FAST.members, 41, len(CLASSES))
    # A perfect map has the entropy of the noise as log loss.
    values, groups = ramp.trainings.values("connectivity_R2"), ramp.groups
    p = norm.cdf((ramp.x[:, 0] - known.BOUNDARY) / known.WIDTH)
    ideal = -np.mean(np.log(np.where(values > 0.9, p, 1 - p)))
    assert ideal - 0.05 < ramp.classes.score.log_loss < ideal + 0.12 < ramp.classes.score.base_log_loss
    share = np.bincount(groups, values > 0.9) / np.bincount(groups)
    bins = reliability(ramp.classes.held_out[:, 2], share, np.bincount(groups))
    assert np.abs(bins[:, 0] - bins[:, 1]).mean() < 0.08


def test_the_boundary_and_the_distance_to_failure_are_found(steps):
    setting = steps.recommended
    level, ranges = steps.stable_ranges(setting)
    assert level == regions.RELIABLE
    first, *others = ranges
    assert 8e-4 < first.low < 1.3e-3 and first.high == 1e-2  # half of the range is 1e-3
    assert first.low_interval[0] <= 1e-3 * 1.1 and not first.whole
    assert 1.5e-4 < first.fails_at < 2.9e-4  # a sixth is 2.2e-4
    assert all(other.whole and other.fails_at is None for other in others)
    share = regions.share_reliable(steps.above, steps.space)
    assert share.value == pytest.approx(0.5, abs=0.03)
    distance = regions.distance_to_failure(steps.classes, steps.space, setting.place)
    assert distance.value == pytest.approx(setting.place[0] - 1 / 6, abs=0.12)


def test_the_recommended_setting_is_not_the_luckiest_node():
    # A narrow peak of one lucky node against a broad plateau.
    table = known.trainings(lambda u: 0.5 + 0.3 * (u[:, 0] > 0.5), 0.05)
    lucky = int(np.argmin(table.values("connectivity_R2")))
    table.metrics["connectivity_R2"][lucky] = 1.0
    landscape = fit(table, RANGES, sizes=FAST)
    assert landscape.best_node.observed > landscape.recommended.expected.value
    assert landscape.recommended.place[0] > 0.55
    assert landscape.recommended.expected.low < 0.8 < landscape.recommended.expected.high
    assert landscape.given({**landscape.recommended.settings, NAMES[0]: 0.05}).outside == (NAMES[0],)


def test_a_map_without_skill_has_a_problem():
    landscape = fit(known.trainings(lambda u: np.full(len(u), 0.5), 0.1, n=32), RANGES, sizes=FAST)
    assert landscape.problem and landscape.summary()["problem"] == landscape.problem
    assert "importance" not in landscape.summary()


@pytest.mark.parametrize(
    "table",
    [
        known.trainings(known.steps, 0.0, n=8),
        known.trainings(lambda u: 0 * u[:, 0], 0.0, n=32),
        Trainings.from_rows(
            {"settings": {n: 1.0 for n in NAMES}, "metrics": {"connectivity_R2": None}, "seed": s, "reason": "diverged"}
            for s in range(20)
        ),
        Trainings.from_rows(
            {"settings": {n: 1 for n in NAMES} | {NAMES[0]: 1e-3, NAMES[4]: 20}, "metrics": {"connectivity_R2": 0.5}}
            for s in range(20)
        ),
    ],
    ids=["too few", "constant metric", "all failed", "constant settings"],
)
def test_what_cannot_be_mapped_is_one_line(table):
    ranges = RANGES if len(table) != 20 or table.reasons[0] == "" else {n: RANGES["coeff_edge_norm"] for n in NAMES}
    landscape = fit(table, ranges, sizes=FAST)
    assert landscape.problem and "\n" not in landscape.problem


@pytest.mark.parametrize(
    "change, key",
    [
        ({"settings": {NAMES[0]: 5.0}}, NAMES[0]),
        ({"settings": {NAMES[0]: None}}, NAMES[0]),
        ({"settings": {"coeff_W_L1": 3.0}}, "coeff_W_L1"),
        ({"conditions": {"learner": "ours"}}, "learner"),
    ],
)
def test_trainings_of_other_spaces_and_conditions_are_refused(change, key):
    row = {"settings": {n: s.min or 1 for n, s in RANGES.items()}, "conditions": {"learner": "published"}}
    row["metrics"] = {"connectivity_R2": 0.5}
    other = {**row, **{k: {**row[k], **v} for k, v in change.items()}}
    with pytest.raises(UserError, match=key):
        fit(Trainings.from_rows([row, other]), RANGES)


def test_conditions_are_mapped_on_their_own_or_pooled_on_request():
    rows = [known.trainings(known.steps, 0.01, n=16, conditions={"learner": name}) for name in ("published", "ours")]
    both = Trainings.from_rows(
        {
            "settings": {n: c[k] for n, c in part.settings.items()},
            "conditions": {"learner": part.conditions["learner"][k]},
            "metrics": {"connectivity_R2": part.metrics["connectivity_R2"][k]},
        }
        for part in rows
        for k in range(len(part))
    )
    assert {name: len(part) for name, part in both.split(RANGES).items()} == {"published": 32, "ours": 32}
    assert len(fit(both, RANGES, pool=True).trainings) == 64
    with pytest.raises(UserError, match="no_metric"):
        fit(rows[0], RANGES, "no_metric")


def test_where_nothing_converges_a_lower_level_is_known():
    landscape = fit(known.trainings(lambda u: 0.6 * (u[:, 0] > 0.5), 0.01, n=64), RANGES, sizes=FAST)
    assert landscape.classes.skill.low > 0 and not landscape.tells_where
    assert landscape.above.level == 0.5 and landscape.above.rate == pytest.approx(0.5, abs=0.02)
    reliability, (first, *_) = landscape.stable_ranges(landscape.recommended)
    assert reliability is not None and 8e-4 < first.low < 1.6e-3 and first.high == 1e-2
    assert landscape.summary()["above"] == 0.5


def clustered(n=48):
    """Nodes of a search that has exploited: all partial, in a corner of the space."""
    rng = np.random.default_rng(0)
    u = 0.7 + 0.3 * rng.random((n, 5))
    u[:, 3] = 0.5
    return ClassMap.fit(u, 0.6 + 0.1 * u[:, 1] + 0.05 * rng.normal(size=n), np.arange(n), FAST), u


def test_far_from_all_trainings_the_classes_are_not_known():
    classes, near = clustered()
    far = classes.probabilities(np.zeros((1, 5)))[0]
    assert classes.probabilities(near)[:, 1].min() > 0.9
    assert far[0] > 0.03 and far[2] > 0.1, "no class is excluded that no training excludes"


def test_values_that_a_level_divides_are_distinguished():
    rng = np.random.default_rng(1)
    u = rng.random((96, 5))
    classes = ClassMap.fit(u, np.clip(0.8 * u[:, 0] + 0.02 * rng.normal(size=96), 0, 1), np.arange(96), FAST)
    for level in (0.3, 0.5, 0.7):
        one = classes.above(level)
        assert one.skill.low > 0.5 and one.rate == np.mean(classes.values > level)
    assert classes.converged.skill.value == 0, "nothing converged"
