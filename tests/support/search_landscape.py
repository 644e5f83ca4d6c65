"""An analytic stand-in for the trainer: a landscape over the protocol's parameters, seeds as noise.

Shaped after what is known of the real one: .66 at the protocol's defaults, .97 near noise 0.1, batch 4,
edge_diff 500 and all rates 1e-3; low at noise 0.02, .72 at noise 0.2.
"""

import hashlib
import math
from pathlib import Path

from flyjax.config import parse_experiment

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "protocol.md"


def experiment(**search):
    """A small study on the protocol's ranges."""
    return parse_experiment(
        {
            "name": "landscape",
            "simulation": {"n_frames": 32_000},
            "search": {
                **{"n_candidates": 4, "n_iter_block": 4, "n_blocks": 2, "proposer": "rules", "confirm_share": 0},
                **search,
            },
        }
    )


def r2(config, simulation=None, seed=0, jitter=0.004):
    """connectivity_R2 of one training."""
    steps = config["data_augmentation_loop"] / config["batch_size"]
    noise = max(config["noise_model_level"], 1e-3)
    far = (
        (1.1 * math.log(noise / 0.11)) ** 2 * (2.2 if noise < 0.11 else 0.7)
        + (0.35 * math.log(config["learning_rate_start"] / 1e-3)) ** 2
        + (0.3 * math.log(config["learning_rate_W_start"] / 1.2e-3)) ** 2
        + (0.12 * math.log(config["learning_rate_embedding_start"] / 1e-3)) ** 2
        + (0.1 * math.log(config["coeff_W_L1"] / 5e-5)) ** 2
        + (0.5 * (config["coeff_edge_diff"] - 600) / 1000) ** 2
        + (0.08 * math.log(config["batch_size"] / 4)) ** 2
        + (0.1 * math.log(steps / 15)) ** 2
    ) / 2.2
    hashed = int.from_bytes(hashlib.sha256(f"{seed}".encode()).digest()[:4], "big") / 2**32
    kind = 0.02 if simulation and simulation["visual_input_type"] == "optical_flow" else 0.0
    return max(0.0, 0.975 * math.exp(-far) - kind + jitter * (2 * hashed - 1))


def metrics(value):
    """Every name of the protocol, made up from one value."""
    return {
        "test_R2": 0.9 * value,
        "test_pearson": 0.95 * value,
        "connectivity_R2": value,
        "tau_R2": value**2,
        "V_rest_R2": 0.5 * value,
        "external_input_R2": 0.8 * value,
        "cluster_accuracy": 0.7 * value,
        "final_loss": 1 - value,
    }


def evaluate(plan):
    """Train a plan on the landscape."""
    out = {}
    for node in plan.nodes:
        values = [r2(node.config, plan.simulation, seed) for seed in node.seeds]
        mean = sum(values) / len(values)
        out[node.id] = {
            "metrics": metrics(mean),
            "reason": None,
            "activity": "2% silent",
            "per_seed": [metrics(v) for v in values],
        }
    return out
