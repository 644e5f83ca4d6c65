"""Models from the official download: found at any depth, each checked, noted with its sum, used by name."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from support.torch_zip import flyvis_checkpoint

from flyjax.config import Simulation
from flyjax.ground_truth import build_ground_truth, flyvis_ensemble
from flyjax.utils.errors import UserError


@pytest.fixture(scope="module")
def models():
    return {f"flow/0000/{k:03d}": flyvis_checkpoint(k) for k in (0, 1, 7)}


def as_zip(path, models, prefix="results/"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside", "never written")
        for name, content in models.items():
            archive.writestr(f"{prefix}{name}/best_chkpt", content)
            archive.writestr(f"{prefix}{name}/validation_loss.h5", b"not a model")
    return path


def as_folder(path, models):
    for name, content in models.items():
        (path / name).mkdir(parents=True)
        (path / name / "best_chkpt").write_bytes(content)
        (path / name / "chkpts").mkdir()
        (path / name / "chkpts" / "chkpt_00000").write_bytes(b"an older one, not taken")
    return path


@pytest.mark.parametrize("kind", ["zip", "folder", "inner folder"])
def test_models_are_copied_checked_and_used_by_name(tmp_path, monkeypatch, models, kind):
    source = as_zip(tmp_path / "a.zip", models) if kind == "zip" else as_folder(tmp_path / "data" / "results", models)
    source = source / "flow" / "0000" if kind == "inner folder" else source
    monkeypatch.setenv("FLYJAX_DATA", str(tmp_path / "cache"))
    assert flyvis_ensemble.install(source) == sorted(models)
    assert flyvis_ensemble.installed() == {name: "ok" for name in sorted(models)}
    assert {p.name for p in (tmp_path / "cache" / "flyvis").rglob("*") if p.is_file()} == {"best_chkpt", "SHA256SUMS"}
    assert not (tmp_path / "outside").exists()
    c, p = build_ground_truth(Simulation(extent=0, parameters="flow/0000/007"))
    rng = np.random.default_rng(7)
    assert np.array_equal(np.unique(p.v_rest), np.unique(rng.normal(0.5, 0.05, c.n_types).astype(np.float32)))
    with pytest.raises(UserError, match="fetch_flyvis.py"):
        build_ground_truth(Simulation(extent=0, parameters="flow/0000/002"))


def test_what_was_edited_is_seen_and_not_used(tmp_path, monkeypatch, models):
    monkeypatch.setenv("FLYJAX_DATA", str(tmp_path))
    flyvis_ensemble.install(as_zip(tmp_path / "a.zip", models))
    edited = tmp_path / "flyvis" / "flow/0000/001" / "best_chkpt"
    edited.write_bytes(flyvis_checkpoint(99))  # a good model, but not the one
    (tmp_path / "flyvis" / "flow/0000/007" / "best_chkpt").unlink()
    assert flyvis_ensemble.installed() == {
        "flow/0000/000": "ok",
        "flow/0000/001": "changed",
        "flow/0000/007": "missing",
    }
    with pytest.raises(UserError, match="checksum differs"):
        build_ground_truth(Simulation(extent=0, parameters="flow/0000/001"))
    flyvis_ensemble.install(tmp_path / "a.zip")
    assert set(flyvis_ensemble.installed().values()) == {"ok"}


def test_bad_sources_are_one_line_and_leave_nothing(tmp_path, models):
    (tmp_path / "torn.zip").write_bytes(as_zip(tmp_path / "a.zip", models).read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    short = {"flow/0000/000": flyvis_checkpoint(0, nodes_bias=np.zeros(3))}
    cases = {
        "nowhere": "no folder or zip",
        "torn.zip": "torn",
        "empty": "no flow/0000/NNN",
        "short.zip": "nodes_bias",
        "other.zip": "flow/0000/000 in",
    }
    as_zip(tmp_path / "short.zip", short)
    as_zip(tmp_path / "other.zip", {"flow/0000/000": b"PK but no model"})
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            flyvis_ensemble.install(tmp_path / name, tmp_path / "cache")
        assert "\n" not in str(caught.value)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_the_command_guides_lists_and_refuses(root, tmp_path, models):
    def run(*arguments):
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, str(root / "scripts" / "fetch_flyvis.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    guide = run()
    assert guide.returncode == 1 and "flyvis download-pretrained" in guide.stdout
    done = run(as_zip(tmp_path / "a.zip", models))
    assert done.returncode == 0 and "3 models copied" in done.stdout and "flow/0000/002" in done.stdout
    assert (tmp_path / ".cache" / "flyjax" / "flyvis" / "flow" / "0000" / "007" / "best_chkpt").is_file()
    listed = run("--list")
    assert listed.returncode == 0 and "flow/0000/007  ok" in listed.stdout and "3 of 50" in listed.stdout
    missing = run(tmp_path / "absent")
    assert missing.returncode == 2 and missing.stderr.startswith("error: ") and missing.stderr.count("\n") == 1
