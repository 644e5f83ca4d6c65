r"""The loss of the protocol: a plain norm of the error and the regularisers by their names.

With g the message function, x = 1.5 std(v) over the training recording, at the voltages of the
first frame of the batch, their inputs detached (so the embeddings get no gradient from them):

    data           || pred - y ||_2                       over batch and neurons, not squared
    coeff_W_L1     c sum_e |W_e|
    coeff_edge_diff  c || relu(g(v) - g(v + 0.05 x)) ||_2   messages should not fall with voltage
    coeff_edge_norm  c || g(2x) - 2x ||_2                   fixes the scale shared by g and W
    coeff_{message,update}_{L1,L2}   c sum |theta|, c sum theta^2 over a network's matrices
    coeff_edge_bend    c || g(v) - 2 g(v/2) ||_2        messages start at 0 and are straight on either side of it
    coeff_update_bend  c || f(p) - 2 f((p + q)/2) + f(q) ||_2, p = (v, msg, I) of the first frame, q = (v', 0, 0)
                       with v' of the last: the update does not bend between what was seen and no input at all

The last two say nothing where the data are decisive. They settle what the data leave open: which constant
g sends (g and V_rest share it) and what f answers without input, where the published read-out asks. They
are priors of simplicity, true of a circuit of rectified messages; their default is 0.

Where the stimulus is unknown, a field among the parameters, with I its light at the first frame:

    coeff_light_diff   c || relu(f(I) - f(I + 0.1)) ||_2   over the neurons that see: brighter light does not slow them

Without it a field may fold: f is free to undo any map of the light, and some trainings end with bright and dark
told apart by a light that rises and falls again, or with one upside down.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flyjax.models import chunked_map
from flyjax.models.gnn import make_graph, stimulus_of_neurons
from flyjax.models.learner import Learner

#: Candidate numbers the loss reads: all traced.
COEFFICIENTS = (
    "coeff_W_L1",
    "coeff_edge_diff",
    "coeff_edge_norm",
    "coeff_message_L1",
    "coeff_message_L2",
    "coeff_update_L1",
    "coeff_update_L2",
    "coeff_edge_bend",
    "coeff_update_bend",
)
#: The same where the stimulus is unknown, and how much brighter its light is then.
FIELD_COEFFICIENTS = ("coeff_light_diff",)
BRIGHTER = 0.1
#: Those whose probes cost as much as a frame or two: left out of a program in which they are 0.
BENDS = ("coeff_edge_bend", "coeff_update_bend")


def safe_root(square) -> Float[Array, ""]:
    """Square root with gradient 0 at 0, where the plain one gives infinity: a norm from its sum of squares."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _matrices(network_state):
    return [leaf for leaf in jax.tree.leaves(network_state) if leaf.ndim == 2]


def regularisers(learner: Learner, params, coefficients, batch, x_norm, bends: bool = True) -> dict:
    """Each regulariser, already weighted, by its name; on the first frame of the batch.

    With `bends` False those of `BENDS` are 0 whatever their coefficients.
    """
    model = learner.bind(params)
    voltage: Float[Array, " N"] = batch["voltage"][0]
    terms = dict.fromkeys(COEFFICIENTS, jnp.zeros(())) | {"coeff_W_L1": jnp.sum(jnp.abs(params["W"]))}
    probes = model.probes(voltage, learner.connectome)
    if probes is not None:
        g, state, rows = probes

        def fall(state, fixed):
            voltage, x, *rows = fixed[1]
            values = g(state, jnp.stack([voltage, voltage + 0.05 * x], axis=1), rows)
            return jax.nn.relu(values[:, 0] - values[:, 1])

        def excess(state, fixed):
            _, x, *rows = fixed[1]
            return g(state, 2.0 * x[:, None], rows)[:, 0] - 2.0 * x

        def bend(state, fixed):
            voltage, _, *rows = fixed[1]
            values = g(state, jnp.stack([voltage, 0.5 * voltage], axis=1), rows)
            return values[:, 0] - 2.0 * values[:, 1]

        def norm(function, points):
            # Only the network's parameters get a gradient: voltages and embeddings are `fixed`.
            fixed = voltage, jnp.broadcast_to(x_norm, voltage.shape), *rows
            return safe_root(
                chunked_map.square_sum(function, chunked_map.n_pieces(points * voltage.size), state, None, fixed)
            )

        terms |= {"coeff_edge_diff": norm(fall, 2), "coeff_edge_norm": norm(excess, 1)}
        if bends:
            terms |= {"coeff_edge_bend": norm(bend, 2), "coeff_update_bend": _update_bend(learner, model, batch)}
    for name in ("message", "update"):
        if f"{name}_network" in params:
            matrices = _matrices(params[f"{name}_network"])
            terms[f"coeff_{name}_L1"] = sum(jnp.sum(jnp.abs(m)) for m in matrices)
            terms[f"coeff_{name}_L2"] = sum(jnp.sum(jnp.square(m)) for m in matrices)
    return {name: coefficients[name] * value for name, value in terms.items()}


def _update_bend(learner: Learner, model, batch) -> Float[Array, ""]:
    """Norm of the second differences of f, 1/s. Only f's own parameters get a gradient."""
    voltage, seen = batch["voltage"][:1].T, stimulus_of_neurons(learner.connectome, batch["luminance"][:1])
    msg = jax.lax.stop_gradient(model.incoming(make_graph(learner.connectome, voltage=voltage, stimulus=seen)))
    f, state, embedding = model.update_probes()

    def bend(state, fixed):
        (p, q), embedding = fixed[1]
        points = tuple(jnp.concatenate([a, 0.5 * (a + b), b], axis=1) for a, b in zip(p, q, strict=True))
        values = f(state, points, embedding)
        return values[:, 0] - 2.0 * values[:, 1] + values[:, 2]

    nothing = jnp.zeros_like(msg)
    fixed = ((voltage, msg, seen), (batch["voltage"][-1:].T, nothing, nothing)), jax.lax.stop_gradient(embedding)
    return safe_root(chunked_map.square_sum(bend, chunked_map.n_pieces(3 * voltage.size), state, None, fixed))


def light_regularisers(learner: Learner, params, coefficients, batch) -> dict:
    """Those of an unknown stimulus, weighted, by name; `luminance` of the batch is what the field says."""
    model, seeing = learner.bind(params), jnp.asarray(learner.connectome.inputs)
    voltage, seen = batch["voltage"][:1].T, stimulus_of_neurons(learner.connectome, batch["luminance"][:1])
    msg = model.incoming(make_graph(learner.connectome, voltage=voltage, stimulus=seen))
    f, state, embedding = model.update_probes()
    # Only f's own parameters get a gradient.
    v, msg, light, embedding = jax.lax.stop_gradient(tuple(x[seeing] for x in (voltage, msg, seen, embedding)))
    now, brighter = f(state, (v, msg, light), embedding), f(state, (v, msg, light + BRIGHTER), embedding)
    falls = safe_root(jnp.sum(jnp.square(jax.nn.relu(now - brighter))))
    return {"coeff_light_diff": coefficients["coeff_light_diff"] * falls}


def loss(learner: Learner, params, coefficients, batch, x_norm, bends: bool = True):
    """Total loss and its data term.

    **Arguments:** `batch` holds `voltage` (B, N), `luminance` (B, n_col) and `target` (B, N) in
    1/s; `coefficients` the numbers named in `COEFFICIENTS`; `x_norm` = 1.5 std(v), a scalar; `bends` whether
    those of `BENDS` are evaluated at all.
    """
    data = safe_root(learner.square_error(params, batch["voltage"], batch["luminance"], batch["target"]))
    terms = regularisers(learner, params, coefficients, batch, x_norm, bends)
    if learner.learns_stimulus:
        terms |= light_regularisers(learner, params, coefficients, batch)
    return data + sum(terms.values()), data


def rollout_loss(learner: Learner, params, coefficients, batch, x_norm, dt, bends: bool = True):
    """The loss of R Euler steps through the learner, and its data term.

    **Arguments:** `batch` as in `loss` with a second axis of R consecutive frames: `voltage` (B, R, N) and so
    on; `dt` in s. The error of step s is (u_{s+1} - w_{s+1}) / dt with u the learner's rollout from the first
    voltage and w_{s+1} = v_s + dt y_s what the recording would have been without the noise of that step.
    With R = 1 it is `loss`.
    """

    def step(state, frame):
        change = learner.derivative(params, state, frame["luminance"])
        error = (state - frame["voltage"]) / dt + change - frame["target"]
        return state + dt * change, jnp.sum(jnp.square(error))

    frames = {name: x.swapaxes(0, 1) for name, x in batch.items()}
    _, squares = jax.lax.scan(step, batch["voltage"][:, 0], frames)
    data = safe_root(jnp.sum(squares))
    firsts = {name: x[:, 0] for name, x in batch.items()}
    terms = regularisers(learner, params, coefficients, firsts, x_norm, bends)
    return data + sum(terms.values()), data
