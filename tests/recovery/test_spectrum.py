"""Eigenvalues of W: known matrices, the partial spectrum against the full one, and their figure."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.experiments.reevaluate import COLUMNS, other_metrics, recovery_table, type_table
from flyjax.recovery import evaluate
from flyjax.recovery import metrics as module
from flyjax.recovery.metrics import spectrum, spectrum_metrics
from flyjax.report.figures import circuit


@pytest.fixture(scope="module")
def both():
    return recordings()


@pytest.fixture(scope="module")
def good(both):
    learner = TrueLearner(both[0].connectome)
    return evaluate(learner, learner.params(both[0]), *both)


def test_a_rotation_and_a_self_loop():
    class Three:  # 0 -> 1 with weight 2, 1 -> 0 with weight -2: eigenvalues +-2i; 2 -> 2: 0.5
        n_neurons, senders, receivers = 3, np.array([1, 0, 2]), np.array([0, 1, 2])

    found = spectrum(Three, np.array([-2.0, 2.0, 0.5]))
    assert np.allclose(np.sort_complex(found[:2]), [-2j, 2j]) and found[2] == pytest.approx(0.5)


def test_the_partial_spectrum_is_the_beginning_of_the_full_one(both, monkeypatch):
    c, weight = both[0].connectome, np.asarray(both[0].parameters.weight)
    full = spectrum(c, weight)
    assert len(full) == c.n_neurons
    assert np.allclose(full.sum(), np.sum(weight[c.senders == c.receivers], dtype=np.float64), atol=1e-5)  # the trace
    monkeypatch.setattr(module, "ALL_EIGENVALUES_UP_TO", 100)
    monkeypatch.setattr(module, "N_EIGENVALUES", 20)
    partial = spectrum(c, weight)
    assert len(partial) == 20
    # Every distinct eigenvalue of the first ones is there, and nothing that is none.
    assert all(np.abs(full - z).min() < 1e-6 for z in partial)
    assert all(np.abs(partial - z).min() < 1e-6 for z in full[:16])
    assert spectrum(c, weight * np.float32("nan")) is None


def test_metrics_of_a_scaled_circuit_and_of_a_missing_one(both):
    c, weight = both[0].connectome, np.asarray(both[0].parameters.weight)
    true = spectrum(c, weight)
    m = spectrum_metrics(true, spectrum(c, 1.5 * weight), "_refit").values
    assert m["spectrum_R2_refit"] == pytest.approx(1.0) and m["spectrum_R2_refit_slope"] == pytest.approx(1.5)
    assert m["spectral_radius_refit"] == pytest.approx(1.5 * m["spectral_radius_true"])
    missing = spectrum_metrics(true, None)
    assert missing.values["spectrum_R2"] is None and missing.reasons["spectral_radius"]


def colours(path):
    return np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)


def test_figures_show_what_was_learned(good, both, tmp_path):
    """Small files; without a refit nothing is blue."""
    train = both[0]
    true = spectrum(train.connectome, train.parameters.weight)
    without = dataclasses.replace(good, refit=None)
    drawn = {
        "spectrum": (
            lambda p, e, z: circuit.spectrum_figure(p, train.connectome, true, [true, z]),
            (good, true),
            (without, None),
        ),
        "types": (lambda p, e, z: circuit.types_figure(p, e, train), (good, None), (without, None)),
    }

    def blue(path):
        pixels = colours(path)
        return np.sum(np.abs(pixels - [0, 114, 178]).sum(axis=1) < 60)

    for name, (figure, whole, partial) in drawn.items():
        path = figure(tmp_path / f"{name}.png", *whole)
        assert path.stat().st_size < 120_000
        labels = blue(figure(tmp_path / f"{name}_partial.png", *partial))  # of the lamina's types
        assert blue(path) > labels + 150


def test_functions_of_every_type_and_networks_that_are_not_finite(good, both, tmp_path):
    train, nan = both[0], np.float32("nan")
    path = circuit.type_functions_figure(tmp_path / "a.png", good, train)
    assert path.stat().st_size < 150_000
    moved = dataclasses.replace(good, curves=dataclasses.replace(good.curves, update=good.curves.update + 30))
    other = circuit.type_functions_figure(tmp_path / "b.png", moved, train)
    assert np.mean((colours(path) != colours(other)).any(axis=1)) > 0.005
    estimate = good.estimate._replace(weight=good.estimate.weight * nan, tau=good.estimate.tau * nan)
    curves = dataclasses.replace(good.curves, message=good.curves.message * nan, update=good.curves.update * nan)
    broken = dataclasses.replace(good, estimate=estimate, refit=None, curves=curves)
    for k, draw in enumerate((circuit.types_figure, circuit.type_functions_figure)):
        assert draw(tmp_path / f"{k}.png", broken, train).stat().st_size > 2000
    assert circuit.spectrum_figure(tmp_path / "c.png", train.connectome, None, [None, None]).exists()


def test_the_table_holds_every_score_once(good, both):
    rows = recovery_table(good.metrics)
    assert [(r["of"], r["read-out"]) for r in rows[:4]] == [
        ("W", "published"),
        ("W", "on data"),
        ("W", "refit"),
        ("W", "ceiling"),
    ]
    assert len(rows) == 12 and all(r[k] is not None for r in rows for k in COLUMNS)
    rest = {r["metric"] for r in other_metrics(good.metrics)}
    shown = {k for k in good.metrics if k.startswith(("connectivity_R2", "tau_R2", "V_rest_R2"))}
    assert rest | shown | {"reasons", "computed_on"} == set(good.metrics)
    assert not any(k.endswith(("_slope", "_identity")) for k in rest if k.startswith(("connectivity", "tau", "V_rest")))
    types = type_table(good, both[0])
    assert len(types) == 65 and all(0 <= (r["identifiable"] or 0) <= 1 for r in types)
    share = np.average([r["identifiable"] or 0 for r in types], weights=[r["n_edges"] for r in types])
    assert share == pytest.approx(good.metrics["identifiable_edges"])
