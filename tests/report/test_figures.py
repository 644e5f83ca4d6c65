"""The figures of a node: small files, whatever the network did."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from support.recovery_fixtures import recordings
from support.true_learner import TrueLearner

from flyjax.recovery import evaluate
from flyjax.report.figures import node
from flyjax.report.figures.style import GROUPS, group_of

FIGURES = {
    "activity": (node.activity_figure, 1),
    "recovery": (node.recovery_figure, 0),
    "functions": (node.functions_figure, 0),
    "embedding": (node.embedding_figure, 0),
}


@pytest.fixture(scope="module")
def both():
    return recordings()


def evaluated(both, drift=0.0):
    learner = TrueLearner(both[0].connectome, drift=drift)
    result = evaluate(learner, learner.params(both[0]), *both, with_refit=False, with_ceiling=False)
    embedding = np.random.default_rng(0).normal(size=(both[0].connectome.n_neurons, 2)).astype(np.float32)
    return dataclasses.replace(result, embedding=embedding)


@pytest.fixture(scope="module")
def good(both):
    return evaluated(both)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_small_and_not_blank(name, good, both, tmp_path):
    draw, which = FIGURES[name]
    path = draw(tmp_path / "figures" / f"{name}.png", good, both[which])
    assert path.stat().st_size < 120_000
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] > 400 and (image < 200).any(axis=2).mean() > 0.002


def test_truth_and_rollout_are_both_drawn(good, both, tmp_path):
    """A rollout that leaves the truth changes the picture; the truth alone would not."""
    moved = dataclasses.replace(good.rollout, voltage=good.rollout.voltage + np.float32(0.1))
    same = np.asarray(Image.open(node.activity_figure(tmp_path / "a.png", good, both[1])).convert("RGB"))
    other = dataclasses.replace(good, rollout=moved)
    shifted = np.asarray(Image.open(node.activity_figure(tmp_path / "b.png", other, both[1])).convert("RGB"))
    assert (same != shifted).any(axis=2).mean() > 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_a_diverged_network_is_drawn(name, both, tmp_path):
    diverged = evaluated(both, drift=500.0)
    assert diverged.rollout.divergence_frame is not None
    nan = np.float32("nan")
    estimate = diverged.estimate._replace(
        weight=diverged.estimate.weight * nan, v_rest=np.where(np.arange(443) % 2, nan, diverged.estimate.v_rest)
    )
    broken = dataclasses.replace(diverged, estimate=estimate, embedding=diverged.embedding * nan)
    draw, which = FIGURES[name]
    assert draw(tmp_path / f"{name}.png", broken, both[which]).stat().st_size > 2000


def test_embeddings_of_other_sizes(good, both, tmp_path):
    for d in (1, 5):
        other = dataclasses.replace(good, embedding=np.random.default_rng(d).normal(size=(443, d)))
        assert node.embedding_figure(tmp_path / f"{d}.png", other, both[0]).exists()


def test_every_type_has_its_group(both):
    names = both[0].connectome.cell_types
    label = {name: GROUPS[group_of(name)].name for name in names}
    assert label["R1"] == "photoreceptors" and label["Tm3"] == "transmedullary" and label["T4a"] == "T4, T5"
    assert label["T2a"] == "T1-T3" and label["Mi1"] == "medulla intrinsic" and label["Lawf2"] == "lamina"
    assert label["TmY5a"] == "transmedullary" and label["CT1(M10)"] == "lamina"
