"""What the tests of learners and trainings share."""

import numpy as np


class Noise:
    """A recording of random numbers: enough to train on, with nothing to simulate."""

    def __init__(self, connectome, seed, n_frames=64):
        rng = np.random.default_rng(seed)
        self.voltage = rng.normal(size=(n_frames, connectome.n_neurons)).astype(np.float32)
        self.derivative = rng.normal(size=self.voltage.shape).astype(np.float32)
        self.luminance = rng.uniform(size=(n_frames, connectome.n_columns)).astype(np.float32)
        self.fingerprint = f"noise-{seed}-{n_frames}"

    @property
    def derivative_in_memory(self):
        return self.derivative

    def pairs(self, frames):
        return self.voltage[frames], self.luminance[frames], self.derivative[frames]


def numpy_network(state, inputs):
    """The MLP written out, layer by layer on the concatenated input."""
    kernel = np.concatenate([state["signals"], state["embedded"]["kernel"]])
    hidden = np.maximum(inputs @ kernel + state["embedded"]["bias"], 0)
    for layer in state["hidden"].values():
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    return (hidden @ state["readout"]["kernel"] + state["readout"]["bias"])[:, 0]
