r"""A neural field over space and time that replaces an unknown stimulus.

    I(x, y, t) = sigmoid(mlp([z_1(t), …, z_L(t)], waves(x, y)))

z_l is a learned table of a few numbers per node of a grid over time, interpolated linearly between its
nodes; the finest grid has a node every `field_spacing` frames, each further one half as many. A small
network maps these numbers and the position of a column to its luminance. Tables at several resolutions,
decoded by a small network, are those of instant neural graphics primitives (Müller et al., 2022), here
without their hash: time is one axis, and a dense grid over it is small. The position enters by sines and
cosines of fixed waves (Tancik et al., 2020).

Why not a network of t alone: a movie of some thousand frames has cuts and motion up to its frame rate, and a
training visits each frame a few times; in a table only the nodes around a frame learn from it. Fitted directly to the
luminance of 8,000 frames of scenes_texture but each tenth, 16,000 steps of 4 frames, the tables predicted the tenth
with R2 .97, 2,048 random Fourier features of t (band tuned) with .91 and a SIREN (Sitzmann et al., 2020) with .56;
after 8,000 steps of 16 the SIREN was as good. Interpolation between neighbouring frames gives .98.

Luminance lies in [0, 1], and so does the field: without bounds it grew to tens, where f is curved, and folded (bright
and dark on one value). It is luminance up to an increasing map that f can undo, gain and offset above all;
`coeff_light_diff` (see `losses`) keeps it increasing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from flyjax.circuit.hexgrid import positions
from flyjax.config import Model

#: Fixed waves over the eye, from the longest (columns) to the shortest that its columns resolve.
N_WAVES, LONGEST, SHORTEST = 8, 32.0, 2.0
#: Half-width of the tables' uniform start: small beside the waves, so that all frames start alike.
INITIAL_SCALE = 0.1
_GOLDEN = np.pi * (3 - np.sqrt(5))


def position_features(columns: Int[np.ndarray, "n_col 2"]) -> Float[np.ndarray, "n_col features"]:
    """x and y of columns, and sines and cosines of the fixed waves at them."""
    x, y = positions(columns)
    number = np.geomspace(1 / LONGEST, 1 / SHORTEST, N_WAVES)  # cycles per column
    angle = _GOLDEN * np.arange(N_WAVES)  # directions spread evenly
    phase = 2 * np.pi * number * (x[:, None] * np.cos(angle) + y[:, None] * np.sin(angle))
    return np.concatenate([np.stack([x, y], axis=1) / 8.0, np.sin(phase), np.cos(phase)], axis=1).astype(np.float32)


def spacings(config: Model) -> np.ndarray:
    """(levels,) frames between the nodes of each grid."""
    return config.field_spacing * 2 ** np.arange(config.field_levels)


def nodes(config: Model) -> np.ndarray:
    """(levels,) nodes of each grid: one at frame 0, one at or after the last frame."""
    return -(-(config.field_frames - 1) // spacings(config)) + 1


class Field(nnx.Module):
    """Luminance of columns at frames of one recording.

    **Attributes:**

    - `tables`: (nodes of all grids, features), the finest grid first.
    - `from_time`, `from_place`: the first layer, one kernel for both inputs.
    - `hidden`, `readout`: the layers after it.
    """

    def __init__(self, config: Model, rngs: nnx.Rngs):
        width, n_time, n_place = config.field_width, config.field_levels * config.field_features, 2 + 2 * N_WAVES
        rows = int(nodes(config).sum())
        self.tables = nnx.Param(
            jax.random.uniform(
                rngs.params(), (rows, config.field_features), jnp.float32, minval=-INITIAL_SCALE, maxval=INITIAL_SCALE
            )
        )
        scale = (n_time + n_place) ** -0.5
        self.from_time = nnx.Param(scale * jax.random.normal(rngs.params(), (n_time, width), jnp.float32))
        self.from_place = nnx.Linear(n_place, width, kernel_init=lambda *a: scale * jax.random.normal(*a), rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)
        # Frame f of the recording lies between nodes floor(f / spacing) and the next one of each grid.
        counts = nodes(config)
        self._spacing = tuple(spacings(config).tolist())
        self._first = tuple((np.cumsum(counts) - counts).tolist())
        self._last = tuple((counts - 1).tolist())

    def features(self, frames: Int[Array, " B"]) -> Float[Array, "B features"]:
        """z of every grid at some frames."""
        spacing, first, last = (jnp.asarray(x, jnp.int32)[None, :] for x in (self._spacing, self._first, self._last))
        node, past = frames[:, None] // spacing, frames[:, None] % spacing
        share = (past.astype(jnp.float32) / spacing.astype(jnp.float32))[:, :, None]
        table = self.tables[...]
        z = (1.0 - share) * table[first + node] + share * table[first + jnp.minimum(node + 1, last)]
        return z.reshape(len(frames), -1)

    def __call__(self, frames: Int[Array, " B"], columns: Int[np.ndarray, "n_col 2"]) -> Float[Array, "B n_col"]:
        """The field at B frames and all columns (u, v)."""
        time = self.features(frames) @ self.from_time[...]
        space = self.from_place(jnp.asarray(position_features(columns)))
        rows = jax.nn.gelu(time[:, None, :] + space[None, :, :]).reshape(-1, space.shape[1])
        luminance = jax.nn.sigmoid(self.readout(jax.nn.gelu(self.hidden(rows))))
        return luminance.reshape(len(frames), -1)
