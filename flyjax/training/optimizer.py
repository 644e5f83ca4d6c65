"""Adam with one learning rate per group of parameters, and the learning-rate schedule.

Parameters are packed as one vector per group: the optimiser then runs three kernels and not three per matrix,
which on small circuits is most of a step.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from flyjax.models import Learner
from flyjax.training.hparams import RATES

#: Groups of a learner's parameters; what is not named here is in 'networks'. Units are set and never trained.
GROUPS = {
    "W": "W",
    "embedding": "embedding",
    "log_tau": "embedding",
    "v_rest": "embedding",
    "field": "field",
    "units": "units",
}


def group_of(name: str) -> str:
    """Learning-rate group of a learner's parameter: 'W', 'embedding' (all that a neuron has for itself), 'field'
    (the unknown stimulus), 'units' or 'networks'."""
    return GROUPS.get(name, "networks")


def _by_group(params: dict) -> dict[str, dict]:
    parts: dict[str, dict] = {}
    for name, value in params.items():
        parts.setdefault(group_of(name), {})[name] = value
    return parts


def pack(params: dict) -> dict[str, Array]:
    """Parameters as one vector per group."""
    return {group: ravel_pytree(part)[0] for group, part in _by_group(params).items()}


def unpack(learner: Learner, packed: dict[str, Any]) -> dict:
    """The parameters that `pack` packed; of NumPy arrays as NumPy arrays, for which nothing is compiled."""
    params: dict = {}
    vectors: Any
    for group, part in _by_group(learner.shapes).items():
        leaves, tree = jax.tree.flatten(part)
        sizes = [leaf.size for leaf in leaves]
        if isinstance(packed[group], np.ndarray):
            vectors = np.split(packed[group], np.cumsum(sizes)[:-1])
        else:  # splitting once keeps the gradient one concatenation; that of many slices is as many padded sums
            vectors = jax.lax.split(packed[group], sizes)
        params |= jax.tree.unflatten(tree, [v.reshape(leaf.shape) for v, leaf in zip(vectors, leaves, strict=True)])
    return params


def schedule_factor(schedule: str, hparams, count, xp=jnp):
    """Share of the initial learning rates after `count` steps: 1, or a linear warm-up and a cosine decay to 0.

    **Arguments:** `xp`: `jax.numpy` for traced numbers, `numpy` on the host.
    """
    if schedule == "constant":
        return 1.0
    progress = xp.asarray(count, xp.float32) / xp.asarray(hparams["n_steps"], xp.float32)
    warm_up = xp.minimum(1.0, (progress + 1e-6) / (hparams["warmup_fraction"] + 1e-6))
    return warm_up * 0.5 * (1.0 + xp.cos(xp.pi * xp.minimum(progress, 1.0)))


def learning_rate(group: str, schedule: str, hparams, count, xp=jnp):
    """Learning rate of a group after `count` steps; that of W is 0 once it has been projected."""
    rate = hparams[RATES[group]] * schedule_factor(schedule, hparams, count, xp)
    return xp.where(count < hparams["n_steps_W"], rate, xp.float32(0)) if group == "W" else rate


def make_optimizer(hparams, schedule: str) -> optax.GradientTransformation:
    """Adam on packed parameters with one learning rate per group; the rates may be traced.

    Optax' own `warmup_cosine_decay_schedule` refuses a traced peak.
    """

    inner = optax.multi_transform(
        {
            group: optax.adam(partial(learning_rate, group, schedule, hparams))
            for group, name in RATES.items()
            if name in hparams
        }
        | {"units": optax.set_to_zero()},
        lambda packed: {group: group for group in packed},
    )

    def update(updates, state, params=None):
        # Adam's bias correction raises a float to the integer count, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
