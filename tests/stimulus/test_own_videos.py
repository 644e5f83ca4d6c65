"""Own videos: a film, a folder of frames, folders of both, one of them split in time."""

import numpy as np
import pytest
from PIL import Image

from flyjax.config import Simulation
from flyjax.data import stimulus_for_split
from flyjax.stimulus import available, fingerprint, luminance
from flyjax.utils.errors import UserError

COLUMNS = np.array([(0, 0)])


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("FLYJAX_DATA", raising=False)


def frames(n, first=0):
    return [Image.fromarray(np.full((20, 30), 5 * (first + k), np.uint8)) for k in range(n)]


def sequence(folder, n=10, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(frames(n, first)):
        frame.save(folder / f"{k}.png")
    return folder


def film(path, n=10, first=0):
    stills = frames(n, first)
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=40)
    return path


def levels(path, split):
    return set((luminance("video", COLUMNS, 400, 0.02, split, data_path=path)[:, 0] * 51).round().astype(int).tolist())


@pytest.mark.parametrize("make", [lambda p: film(p / "a.gif"), lambda p: film(p / "a.gif").parent, sequence])
def test_a_single_video_is_split_in_time(tmp_path, make):
    path = make(tmp_path)
    assert "video" in available(path) and fingerprint("video", path)
    assert levels(path, "train") == set(range(8)) and levels(path, "test") == {8, 9}


def test_several_videos_are_split_by_name(tmp_path):
    sequence(tmp_path / "a"), film(tmp_path / "b.gif", first=20), sequence(tmp_path / "c", first=40)
    train, test = levels(tmp_path, "train"), levels(tmp_path, "test")
    assert not train & test and train | test == {*range(10), *range(20, 30), *range(40, 50)}


def test_a_video_is_tested_on_its_own_held_out_part():
    assert stimulus_for_split(Simulation(visual_input_type="video"), "test") == "video"


def test_what_cannot_be_split_or_is_not_there_names_the_key(tmp_path):
    for path in (None, tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="simulation.data_path"):
            luminance("video", COLUMNS, 10, 0.02, data_path=path)
    with pytest.raises(UserError, match=r"only\.gif"):
        luminance("video", COLUMNS, 10, 0.02, data_path=film(tmp_path / "only.gif", 1))
    with pytest.raises(UserError, match="simulation.visual_input_type=video"):
        luminance("DAVIS", COLUMNS, 10, 0.02, data_path=tmp_path)


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path):
    first, second = (sequence(tmp_path / name / "clip") for name in ("x", "y"))
    assert fingerprint("video", first.parent) == fingerprint("video", second.parent)
    film(first.parent / "b.gif")
    assert fingerprint("video", first.parent) != fingerprint("video", second.parent)
