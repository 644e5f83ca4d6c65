"""A dry run refuses what the run would refuse later: packages, decoders and names that are not there."""

import sys

import pytest

from flyjax.cli.fallbacks import check_stimuli
from flyjax.config import load_experiment
from flyjax.utils.errors import UserError


@pytest.mark.parametrize(
    "package, call",
    [
        ("wandb", "meta_loop --log wandb"),
        ("tensorboardX", "train --log tensorboard"),
        ("trackio", "sweep --log trackio"),
        ("optuna", "meta_loop --proposer tpe"),
        ("cmaes", "meta_loop --proposer cmaes --set search.n_candidates=4"),
        ("cmaes", "meta_loop --proposer hybrid --set search.n_candidates=4"),
    ],
)
def test_a_missing_package_is_named(script, tmp_path, monkeypatch, package, call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    name, *options = call.split()
    code, _, errors = script(name, "--dry-run", "--memory", "80", *options)
    assert code == 2 and package in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["", "test_"])
def test_an_unknown_stimulus_is_named_with_the_nearest(root, split):
    experiment = load_experiment(
        root / "experiments" / "quickstart.yaml", [f"simulation.{split}visual_input_type=blnk"]
    )
    with pytest.raises(UserError, match="'blank'"):
        check_stimuli(experiment, dry_run=True)


def test_a_film_without_a_decoder_is_named(root, tmp_path, monkeypatch):
    film = tmp_path / "film.mp4"
    film.touch()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    settings = ["simulation.visual_input_type=video", f"simulation.data_path={film}"]
    with pytest.raises(UserError, match="film.mp4.*imageio-ffmpeg"):
        check_stimuli(load_experiment(root / "experiments" / "quickstart.yaml", settings), dry_run=True)
