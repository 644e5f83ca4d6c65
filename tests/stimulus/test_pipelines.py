"""How videos are shown: the two pipelines against pictures turned by hand, and blank frames against counted ones."""

import logging

import numpy as np
import pytest
from PIL import Image

from flyjax.circuit.hexgrid import flip, rotation
from flyjax.config import Simulation
from flyjax.data import record, recorder, stimulus_for_split
from flyjax.data.splits import cache_key
from flyjax.stimulus import flow, luminance
from flyjax.stimulus.davis import published_order, quarter_turn
from flyjax.utils.errors import UserError

COLUMNS = np.array([(-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0)])


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("FLYJAX_DATA", raising=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """a, b and c of 50 frames, d of 49; frame t of video k is k * 50 + t everywhere but in the bright left part."""
    root = tmp_path_factory.mktemp("videos")
    for k, name in enumerate("abcd"):
        (root / name).mkdir()
        for t in range(50 - (name == "d")):
            picture = np.full((60, 80), 50 * k + t, np.uint8)
            picture[:, :34] = 255
            Image.fromarray(picture).save(root / name / f"{t}.png")
    return root


def test_a_picture_is_turned_clockwise_and_cropped():
    picture = np.arange(30).reshape(10, 3)
    # The lower left corner becomes the upper left one; 6 of 10 columns are kept.
    np.testing.assert_array_equal(quarter_turn(picture), [[picture[9 - j, i] for j in range(2, 8)] for i in range(3)])


def test_a_bright_left_side_is_seen_on_the_left_or_above(videos):
    u, v = COLUMNS.T
    order = published_order(3, "train", 0)
    seen = luminance("DAVIS", COLUMNS, 50 * len(order), 0.02, "train", 0, videos, video_pipeline="flyvis_gnn")
    untouched = 50 * order.index(0)  # video a, neither mirrored nor turned
    bright = seen[untouched] > 0.9
    np.testing.assert_array_equal(bright, u + v / 2 <= -1)
    clips = luminance("DAVIS", COLUMNS, 8 * 150, 0.02, "train", 0, videos)
    left = (clips > 0.9) == (v < 0)
    assert left.all(axis=1).any() and not ((clips > 0.9) == bright).all(axis=1).any()


def test_the_published_order_is_that_of_pythons_shuffle():
    # random.seed(0); random.shuffle(list(range(24))): the clips of videos 0 and 1 are for training.
    shuffled = [14, 0, 17, 7, 6, 11, 22, 21, 10, 4, 2, 20, 3, 19, 5, 18, 9, 23, 15, 16, 8, 1, 13, 12]
    assert published_order(3, "train", 0) == [k for k in shuffled if k < 16]
    assert published_order(3, "test", 0) == [k for k in shuffled if k >= 16]


def test_the_published_pipeline_repeats_its_order_and_leaves_short_videos_out(videos):
    options = dict(data_path=videos, video_pipeline="flyvis_gnn")
    seen = luminance("DAVIS", COLUMNS, 2400, 0.02, "train", 0, **options)
    order = published_order(3, "train", 0)
    np.testing.assert_array_equal(seen[:800], seen[800:1600])
    base = {k: seen[50 * order.index(8 * k) : 50 * order.index(8 * k) + 50] for k in (0, 1)}
    for place, k in enumerate(order):
        axis, turn = divmod(k % 8, 4)
        turned = flip(COLUMNS, axis)[rotation(COLUMNS, (0, 1, 3, 4)[turn])]
        np.testing.assert_array_equal(seen[50 * place : 50 * place + 50], base[k // 8][:, turned])
    centre = np.round(seen[:, 3] * 255)
    assert set(centre) == set(range(100))  # a and b whole, nothing of c and d
    test = luminance("DAVIS", COLUMNS, 400, 0.02, "test", 0, **options)
    assert set(np.round(test[:, 3] * 255)) == set(range(100, 150))
    own = luminance("DAVIS", COLUMNS, 2400, 0.02, "train", 0, videos)
    assert not np.array_equal(own[:1200], own[1200:])  # every pass has an order of its own
    with pytest.raises(UserError, match="at least 50 frames"):
        luminance("video", COLUMNS, 10, 0.02, "train", 0, videos / "a", video_pipeline="flyvis_gnn")
    with pytest.raises(UserError, match="Did you mean 'flyvis_gnn'"):
        luminance("DAVIS", COLUMNS, 10, 0.02, "train", 0, videos, video_pipeline="flyvis-gnn")


def test_one_key_sets_what_belongs_to_the_published_pipeline():
    published = Simulation(video_pipeline="flyvis_gnn")
    assert (published.clamp_tau, published.warm_up, published.test_visual_input_type) == (False, 2.0, "DAVIS")
    mine = Simulation(video_pipeline="flyvis_gnn", clamp_tau=True, warm_up=0.5, test_visual_input_type="scenes_flow")
    assert (mine.clamp_tau, mine.warm_up, mine.test_visual_input_type) == (True, 0.5, "scenes_flow")
    assert Simulation.model_validate(mine.model_dump()) == mine


def test_the_first_part_of_every_clip_is_blank(videos):
    plain = luminance("DAVIS", COLUMNS, 1150, 0.02, "train", 3, videos)
    for fraction, level in ((0.5, 0.0), (0.3, 0.5)):
        seen = luminance(
            "DAVIS", COLUMNS, 1150, 0.02, "train", 3, videos, blank_prefix_fraction=fraction,
            blank_prefix_luminance=level,
        )  # fmt: skip
        blank = (seen == level).all(axis=1)
        np.testing.assert_array_equal(seen[~blank], plain[~blank])
        # Lengths of runs: the first half or third of 50 or 49 frames, then the rest; the last clip is cut.
        runs = np.diff(np.flatnonzero(np.diff(blank.astype(int), prepend=0, append=0)))
        assert set(runs[0:-2:2]) <= {int(fraction * 50), int(fraction * 49)} and blank[0]


@pytest.mark.parametrize("name", ["scenes_texture", "moving_edges"])
def test_shots_of_scenes_have_blank_frames_too(name):
    settings = dict(blank_prefix_fraction=0.5, blank_prefix_luminance=0.5)
    plain, seen = luminance(name, COLUMNS, 700, 0.02), luminance(name, COLUMNS, 700, 0.02, **settings)
    moving, still = flow(name, COLUMNS, 700, 0.02), flow(name, COLUMNS, 700, 0.02, **settings)
    hidden = (still != moving).any(axis=(1, 2))
    assert 0.4 < hidden.mean() < 0.55 and (seen[hidden] == 0.5).all() and not still[hidden].any()
    np.testing.assert_array_equal(
        seen[~hidden & (still != 0).any(axis=(1, 2))], plain[~hidden & (still != 0).any((1, 2))]
    )
    np.testing.assert_array_equal(seen[:300], luminance(name, COLUMNS, 300, 0.02, **settings))
    with pytest.raises(UserError, match="one long clip"):
        luminance("white_noise", COLUMNS, 10, 0.02, **settings)
    with pytest.raises(UserError, match="blank_prefix_fraction < 1"):
        luminance(name, COLUMNS, 10, 0.02, blank_prefix_fraction=1.0)


def test_a_recording_knows_its_blank_frames_and_its_pipeline(videos):
    settings = dict(extent=0, visual_input_type="video", data_path=str(videos), n_frames=120, n_test_frames=120)
    plain, blank = Simulation(**settings), Simulation(**settings, blank_prefix_fraction=0.5)
    published = Simulation(**settings, video_pipeline="flyvis_gnn", clamp_tau=True)
    assert len({cache_key(s, 0.05, split, 0) for s in (plain, blank, published) for split in ("train", "test")}) == 6
    for split in ("train", "test"):
        rec = record(blank, 0.0, split)
        dark = rec.luminance[:, 0] == 0
        assert 0.4 < dark.mean() < 0.6
        assert rec.origin["blank_prefix_fraction"] == 0.5 and rec.origin["video_pipeline"] == "flyjax"
        # The voltages follow from the luminance that the recording has.
        np.testing.assert_allclose(np.diff(rec.voltage, axis=0), 0.02 * rec.derivative[:-1], atol=1e-5)


def test_without_sintel_held_out_videos_are_the_test_and_one_line_says_so(videos, caplog):
    simulation = Simulation(extent=0, data_path=str(videos), n_frames=20, n_test_frames=20)
    assert stimulus_for_split(simulation, "test") == "DAVIS"
    recorder._say.cache_clear()  # a line is said once per process
    with caplog.at_level(logging.WARNING, "flyjax"):
        assert record(simulation, 0.0, "test").visual_input_type == "DAVIS"
    (said,) = [r.getMessage() for r in caplog.records]
    assert "optical_flow" in said and "flyjax" in said and "\n" not in said
    elsewhere = simulation.model_copy(update={"data_path": str(videos / "a")})
    assert stimulus_for_split(elsewhere, "test") == "optical_flow"  # neither is there
