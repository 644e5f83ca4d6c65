"""Tuning from the command line: tables, figures and what is refused; the learned beside the true circuit."""

import csv

import jax
import numpy as np
import pytest

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation, Training
from flyjax.config.loading import dump_yaml
from flyjax.experiments.node import learner_for
from flyjax.experiments.tuning import agreement, rows_of, settings_of, summary
from flyjax.report.figures.tuning import edges_figure, fields_figure, flashes_figure
from flyjax.training import save_params
from flyjax.tuning import EdgeResponses, Flashes, FlashResponses, MovingEdges, ReceptiveFields, WhiteNoise
from flyjax.utils.atomic_io import write_atomic, write_json
from flyjax.utils.errors import UserError

TYPES = ("R1", "T4a", "T5a", "Mi1")


def edges(towards):
    """Every type prefers one direction, for ON twice as strongly as for OFF."""
    settings = MovingEdges(speeds=(9.7,))
    curve = 1 + np.cos(np.deg2rad(np.array(settings.angles) - towards))
    peaks = np.stack([curve, 2 * curve], axis=1)[:, :, None, None] * np.ones(len(TYPES))
    return EdgeResponses(settings, TYPES, peaks, ())


def flashed(sign):
    traces = np.zeros((2, 3, len(TYPES)))
    traces[int(sign > 0), 1] = 1.0
    return FlashResponses(Flashes(), TYPES, traces)


def fields(scale):
    kernel = np.zeros((len(TYPES), 3, 7))
    kernel[:, 1, 3] = scale
    return ReceptiveFields(WhiteNoise(n_lags=3), TYPES, kernel)


def test_rows_compare_with_the_published_directions():
    rows = {row["cell_type"]: row for row in rows_of(edges(150))}
    assert rows["T4a"]["error"] == pytest.approx(30) and rows["R1"]["published"] is None
    assert rows["T5a"]["DSI OFF"] == pytest.approx(0.25) and rows["T5a"]["DSI ON"] == pytest.approx(0.5)


def test_the_summary_names_types_of_the_wrong_contrast():
    assert "T5a" in summary(flashed(1)) and "T4a" not in summary(flashed(1))
    assert summary(fields(1.0)) == ""


def test_agreement_of_learned_and_true():
    for true, learned in ((edges(0), edges(0)), (flashed(1), flashed(1)), (fields(1), fields(1))):
        assert all(row["R2"] is None or row["R2"] > 0.999 for row in agreement(true, learned))
    peaks = agreement(edges(0), edges(90))[0]
    assert peaks["measure"] == "peaks" and peaks["R2"] < 0.8


def test_settings_are_those_of_the_protocol_and_checked():
    assert settings_of("moving_edges", ["speeds=[5, 10]"], 0.01) == MovingEdges(speeds=(5, 10), dt=0.01)
    with pytest.raises(UserError, match="moving_edges"):
        settings_of("moving_edge")
    with pytest.raises(UserError, match="radius"):
        settings_of("flashes", ["radius=-2"])


def test_figures_are_drawn_with_and_without_a_learned_circuit(tmp_path):
    columns = build_connectome(1).columns
    for k, pair in enumerate(((edges(0), edges(90)), (edges(0),))):
        assert edges_figure(tmp_path / f"e{k}.png", pair, "edges").stat().st_size > 5_000
    assert flashes_figure(tmp_path / "f.png", (flashed(1), flashed(-1)), "flashes").stat().st_size > 2_000
    assert fields_figure(tmp_path / "r.png", (fields(1), fields(-1)), columns, "fields").stat().st_size > 5_000


def test_the_script_writes_a_table_and_a_figure(script, tmp_path):
    small = "--set", "speeds=[25]", "--set", "angles=[0,90,180,270]", "--dt", "0.02", "--extent", "1"
    code, output, errors = script("simulate", "--protocol", "moving_edges", *small, "--out", tmp_path / "out")
    assert code == 0, errors
    with (tmp_path / "out" / "moving_edges.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 65 and 0 <= float(rows[0]["DSI ON"]) <= 1
    assert (tmp_path / "out" / "moving_edges.png").is_file() and "T4a" in output
    assert script("simulate", "--set", "radius=3")[0] == 2


@pytest.fixture
def saved_node(tmp_path):
    """A run's node with an untrained network; the training of its first seed diverged."""
    folder = tmp_path / "run" / "nodes" / "0001"
    simulation = Simulation(extent=0, visual_input_type="scenes_texture", n_frames=320, n_test_frames=60)
    model = Model(width=8)
    learner = learner_for(simulation, model)
    sections = {"simulation": simulation, "model": model, "training": Training()}
    config = {name: section.model_dump(mode="json") for name, section in sections.items()} | {"seeds": [3, 4]}
    write_atomic(folder / "config.yaml", dump_yaml(config))
    write_json(folder / "metrics.json", {"connectivity_R2": 0.5, "per_seed": [{"final_loss": None}, {"final_loss": 1}]})
    save_params(folder / "params" / "seed_4", learner.init(jax.random.key(4)))
    return folder


def test_the_script_compares_a_trained_network_with_its_circuit(script, saved_node):
    small = "--set", "speeds=[25]", "--set", "angles=[0,180]"
    code, output, errors = script("evaluate", saved_node.parents[1], "--protocol", "moving_edges", *small)
    assert code == 0, errors
    with (saved_node / "tuning" / "moving_edges_agreement.csv").open() as file:
        measures = {row["measure"]: row for row in csv.DictReader(file)}
    assert int(measures["peaks"]["n"]) == 2 * 2 * 65 and "seed" not in errors
    assert {p.name for p in (saved_node / "tuning").iterdir()} >= {"moving_edges.png", "moving_edges_learned.csv"}
