"""The film of the README: `python experiments/film.py [--parameters flow/0000/000] [--extent 4]`.

Trains one network and shows it a held-out scene. The video, what the eye sees, and the activity of some cell types: of
the true circuit, and of the free rollout of the network. 70 s of processor time at extent 4.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import flyjax  # noqa: E402
from flyjax.report.figures.films import comparison_frames, write_gif  # noqa: E402
from flyjax.report.figures.hexmaps import VoltageMaps, most_eventful_frame  # noqa: E402
from flyjax.stimulus import scenes  # noqa: E402

CELL_TYPES = ("L1", "Mi1", "Tm9", "T4a", "T5b")
CANDIDATE = {
    "noise_model_level": 0.1, "batch_size": 4, "learning_rate_start": 1e-3, "coeff_edge_bend": 10.0,
    "coeff_update_bend": 1.0,
}  # fmt: skip


def draw(path: Path, recording: flyjax.Recording, learned: np.ndarray, n_frames: int = 54) -> Path:
    """Write the film of a held-out recording of a built-in scene and a network's voltages on it."""
    middle = most_eventful_frame(recording.luminance)
    first = int(np.clip(middle - n_frames // 2, 1, recording.n_frames - n_frames))
    columns, name, seed = recording.connectome.columns, recording.visual_input_type, recording.simulation.seed
    camera = scenes.picture(name, columns, first + n_frames, recording.dt, "test", seed, 6)[first:]
    film = comparison_frames(VoltageMaps(recording), learned, camera, CELL_TYPES, first)
    return write_gif(path, film, recording.dt, slow=2.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", default="flow/0000/000", help="or sampled, or the path of a checkpoint")
    parser.add_argument("--extent", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "results" / "fly.gif")
    given = parser.parse_args()
    simulation = flyjax.Simulation(
        extent=given.extent, parameters=given.parameters, visual_input_type="scenes_texture", n_frames=1600,
        n_test_frames=400,
    )  # fmt: skip
    (result,) = flyjax.train_candidates(simulation, [CANDIDATE], seeds=[0])
    print({name: result.metrics[name] for name in ("connectivity_R2", "tau_R2", "V_rest_R2", "test_R2")})
    made = draw(given.out, flyjax.record(simulation, 0.0, "test"), result.evaluation.rollout.voltage)
    print(f"{made}  ({made.stat().st_size / 1000:.0f} kB)")
