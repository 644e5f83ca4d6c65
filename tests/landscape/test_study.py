"""The benchmark of a study whose expected values and failures are known."""

import numpy as np
import pytest
from scipy.stats import qmc
from support import analytic_landscape as known

from flyjax.config.ranges import at
from flyjax.landscape import FAST, Benchmark, Trainings, benchmark, fit
from flyjax.utils.errors import UserError

FAILING = 0.25


def rows(n=256, n_seeds=2):
    """Trainings of `additive` of which a quarter of the seeds fails, with tau_R2 half as large."""
    rng = np.random.default_rng(1)
    for place in qmc.Sobol(5, rng=0).random(n):
        settings = {name: at(span, p) for (name, span), p in zip(known.RANGES.items(), place)}
        for seed in range(n_seeds):
            value = known.additive(place[None])[0] * (rng.random() > FAILING) + 0.01 * rng.random()
            metrics = {"connectivity_R2": value, "tau_R2": value / 2, "V_rest_R2": value, "test_R2": value}
            yield {"settings": settings, "conditions": {"learner": "published"}, "seed": seed, "metrics": metrics}


@pytest.fixture(scope="module")
def study():
    return Benchmark(fit(Trainings.from_rows(rows()), known.RANGES, sizes=FAST))


def test_what_it_expects_is_the_known_mean(study):
    points = study.landscape.space.sample(64, seed=9)
    found = [study.expected(s) for s in study.landscape.space.settings(points)]
    truth = (1 - FAILING) * known.additive(points)
    errors = truth - [one["connectivity_R2"] for one in found]
    assert np.std(errors) < 0.6 * np.std(truth) and abs(np.mean(errors)) < 0.03
    assert np.mean([one["tau_R2"] for one in found]) == pytest.approx(truth.mean() / 2, abs=0.03)
    assert truth.max() - 0.05 < study.best < 0.9


def test_seeds_fail_as_often_as_they_do_and_in_all_metrics_together(study):
    settings = study.landscape.space.settings(np.full((1, 5), 0.5))[0]
    drawn = [study.ask(settings, seed) for seed in range(400)]
    w = np.array([one["connectivity_R2"] for one in drawn])
    low = w < 0.2
    assert 0.15 < low.mean() < 0.35 and np.mean((w > 0.2) & (w < 0.3)) < 0.05, "two modes"
    assert w.mean() == pytest.approx(study.expected(settings)["connectivity_R2"], abs=0.05)
    tau = np.array([one["tau_R2"] for one in drawn])
    assert tau[low].max() < tau[~low].min()


def test_the_same_question_has_the_same_answer(study):
    one, other = study.landscape.space.settings(np.array([[0.2] * 5, [0.7] * 5]))
    assert study.ask(one, 3) == study.ask(one, 3) != study.ask(one, 4)
    # Another configuration is another draw, not the same luck.
    luck = [[study.ask(s, k)["connectivity_R2"] > 0.2 for k in range(200)] for s in (one, other)]
    assert abs(np.corrcoef(luck)[0, 1]) < 0.25


def test_its_fidelity_is_that_of_the_trainings(study):
    found, real = study.fidelity, study.landscape.trainings.values("connectivity_R2")
    assert found.n == 512 and 0 <= found.distance < 0.2
    assert found.skill.low <= found.skill.value < found.attainable + 0.1
    first, second = real[::2], real[1::2]
    order = np.argsort(np.argsort([first, second]), axis=1)
    assert found.rank_of_seeds == pytest.approx(np.corrcoef(order)[0, 1], abs=0.01)


def test_a_table_gives_a_benchmark_per_condition_and_says_why_there_is_none(tmp_path):
    def table(name, rows):
        path = tmp_path / name
        lines = [{**r["settings"], **r["conditions"], "seed": r["seed"], **r["metrics"], "reason": ""} for r in rows]
        path.write_text("\n".join(",".join(map(str, line)) for line in [lines[0], *(x.values() for x in lines)]) + "\n")
        return path

    both = [{**r, "conditions": {"learner": name}} for name in ("published", "own") for r in rows(64)]
    assert set(benchmark(table("both.csv", both), known.RANGES, FAST)) == {"published", "own"}
    with pytest.raises(UserError, match="one seed"):
        benchmark(table("one.csv", list(rows(256, n_seeds=1))), known.RANGES, FAST)
    with pytest.raises(UserError, match="too few"):
        benchmark(table("few.csv", list(rows(4))), known.RANGES, FAST)
    with pytest.raises(UserError, match=r"trainings\.csv\.gz"):
        benchmark(tmp_path / "none", known.RANGES)
