"""A circuit of six neurons, simulated here, whose activity stands for a laboratory's."""

import numpy as np

N, DT = 6, 0.02
PRE = np.array([0, 1, 2, 3, 4, 5, 0, 2, 1])
POST = np.array([2, 3, 4, 5, 3, 2, 4, 5, 5])
WEIGHT = np.array([0.8, -0.6, 0.7, 0.5, -0.4, 0.6, 0.5, -0.5, 0.9])
TAU = np.array([0.05, 0.08, 0.06, 0.1, 0.07, 0.09])
V_REST = np.array([0.1, 0.2, 0.4, 0.6, 0.3, 0.4])


def own_arrays(n_frames=600, seed=0):
    """voltage, dt, stimulus and the neurons that see it: Euler steps of the circuit's equation."""
    rng = np.random.default_rng(seed)
    stimulus = np.repeat(rng.uniform(size=(-(-n_frames // 5), 2)), 5, axis=0)[:n_frames]
    coupling = np.zeros((N, N))
    coupling[POST, PRE] = WEIGHT
    voltage = np.empty((n_frames, N))
    voltage[0] = V_REST
    for t in range(n_frames - 1):
        given = np.pad(stimulus[t], (0, N - 2))
        rate = (V_REST - voltage[t] + coupling @ np.maximum(voltage[t], 0) + given) / TAU
        voltage[t + 1] = voltage[t] + DT * rate
    return {"voltage": voltage, "dt": DT, "stimulus": stimulus, "input": np.array([0, 1])}


def edges():
    return {"pre": PRE, "post": POST}
