"""Recordings shared by the recovery tests: extent 1, parameters drawn per cell type."""

from functools import cache

import numpy as np

from flyjax.circuit import build_connectome, expand
from flyjax.config import Simulation
from flyjax.data import record

SIMULATION = Simulation(extent=1, visual_input_type="scenes_texture", n_frames=1200, n_test_frames=300)


@cache
def circuit():
    """(connectome, parameters): in-weights of norm 0.7, time constants 10-200 ms (some below dt)."""
    c = build_connectome(1)
    rng = np.random.default_rng(0)
    strength = rng.lognormal(0, 0.5, len(c.pairs)) / np.maximum(c.key_n_syn.mean(), 1)
    p = expand(c, rng.normal(0.2, 0.3, 65), np.exp(rng.uniform(np.log(0.01), np.log(0.2), 65)), strength)
    norm = np.sqrt(np.bincount(c.receivers, np.asarray(p.weight, np.float64) ** 2, c.n_neurons))
    per_type = np.array([norm[c.cell_type == t].max() for t in range(65)])
    return c, p._replace(weight=p.weight * np.float32(0.7 / np.maximum(per_type, 1e-6))[c.cell_type[c.receivers]])


@cache
def recordings(noise: float = 0.05):
    """(training, test)."""
    c, p = circuit()
    return tuple(record(SIMULATION, noise, split=split, connectome=c, parameters=p) for split in ("train", "test"))
