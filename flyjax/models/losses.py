r"""The loss of the protocol: a plain norm of the error and the regularisers by their names.

With g the message function, x = 1.5 std(v) over the training recording, at the voltages of the
first frame of the batch, their inputs detached (so the embeddings get no gradient from them):

    data               || pred - y ||_2                       over batch and neurons, not squared
    coeff_W_L1         c sum_e |W_e|
    coeff_edge_diff    c || relu(g(v) - g(v + 0.05 x)) ||_2   messages should not fall with voltage
    coeff_edge_norm    c || g(2x) - 2x ||_2                   fixes the scale shared by g and W
    coeff_{message,update}_{L1,L2}   c sum |theta|, c sum theta^2 over a network's matrices
    coeff_edge_bend    c || g(v) - 2 g(v/2) ||_2              messages start at 0 and are straight on either side of it
    coeff_update_bend  c || f(p) - 2 f((p + q)/2) + f(q) ||_2, p = (v, msg, I) of the first frame, q = (v', 0, 0)
                       with v' of the last: the update has no curvature between an observed state and no input

The last two change nothing where the data determine the functions. They determine what the data do not: which
constant g sends (g and V_rest share it) and the value of f without input, where the published read-out evaluates it.
They are simplicity priors that hold for rectified messages; their default is 0.

Where the stimulus is unknown, a field among the parameters, with I its luminance at the first frame:

    coeff_light_diff   c || relu(f(I) - f(I + 0.1)) ||_2      over photoreceptors: more luminance does not slow them

Without it a field may fold: f is free to undo any map of the luminance, and in some trainings bright and dark
are distinguished by a luminance that rises and falls again, or one is inverted.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flyjax.models import chunked_map
from flyjax.models.gnn import MessagePassing
from flyjax.models.learner import Learner
from flyjax.utils import registry

#: Those of an unknown stimulus, and the step in luminance of their finite difference.
FIELD_COEFFICIENTS = ("coeff_light_diff",)
LUMINANCE_STEP = 0.1
#: The built-in coefficients of a candidate whose stimulus is known: all traced.
COEFFICIENTS = tuple(name for name in registry.regulariser.built_in if name not in FIELD_COEFFICIENTS)
#: Those that cost as much as a frame or two: left out of a program in which they are 0.
CURVATURE_COEFFICIENTS = ("coeff_edge_bend", "coeff_update_bend")


def safe_root(square) -> Float[Array, ""]:
    """Square root with gradient 0 at 0, where the plain one gives infinity: a norm from its sum of squares."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def coefficient_names(field: bool) -> tuple[str, ...]:
    """Names of all regularisers, those of plugins among them; `field`: where the stimulus is unknown."""
    return tuple(name for name in registry.regulariser if field or name not in FIELD_COEFFICIENTS)


def weight_L1(learner: Learner, params, batch, x_norm) -> Float[Array, ""]:
    """Sum of |W|."""
    return jnp.sum(jnp.abs(params["W"]))


#: Regularisers of the messages: the voltages at which g is evaluated, of the sender's voltage and x = 1.5 std(v), and
#: the residual, of the values of g there and x. g should not fall over a small step in voltage, be 2x at 2x, and a
#: straight line through the origin.
MESSAGE_TERMS: dict[str, tuple[Callable, Callable]] = {
    "coeff_edge_diff": (lambda v, x: (v, v + 0.05 * x), lambda g, x: jax.nn.relu(g[:, 0] - g[:, 1])),
    "coeff_edge_norm": (lambda v, x: (2.0 * x,), lambda g, x: g[:, 0] - 2.0 * x),
    "coeff_edge_bend": (lambda v, x: (v, 0.5 * v), lambda g, x: g[:, 0] - 2.0 * g[:, 1]),
}


def _message_term(points: Callable, residual: Callable) -> Callable:
    """A regulariser of the messages, of `MESSAGE_TERMS`."""

    def term(learner: Learner, params, batch, x_norm) -> Float[Array, ""]:
        model = learner.bind(params)
        voltage: Float[Array, " N"] = batch["voltage"][0]
        probe = model.message_probe(voltage, learner.connectome)
        if probe is None:
            return jnp.zeros(())
        function, state, rows = probe

        def residuals(state, no_rows_and_fixed):
            voltage, x, *rows = no_rows_and_fixed[1]
            return residual(function(state, jnp.stack(points(voltage, x), axis=1), rows), x)

        # Only the network's parameters get a gradient: voltages and embeddings are fixed.
        fixed = voltage, jnp.broadcast_to(x_norm, voltage.shape), *rows
        n_segments = model.n_segments(len(points(voltage, voltage)) * voltage.size)
        return safe_root(chunked_map.square_sum(residuals, n_segments, state, None, fixed))

    return term


edge_diff, edge_norm, edge_bend = (_message_term(*term) for term in MESSAGE_TERMS.values())


def _joined(learner: Learner, params, names, batch, x_norm) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The sum of squared errors and these `MESSAGE_TERMS`, of one evaluation of the message network."""
    first = batch["voltage"][0]
    x = jnp.broadcast_to(x_norm, first.shape)
    points = {name: MESSAGE_TERMS[name][0](first, x) for name in names}
    others = [v[:, None] for own in points.values() for v in own if v is not first]
    columns = jnp.concatenate([jnp.zeros((len(first), 0), first.dtype), *others], axis=1)
    sent, again, probed = learner.bind(params).sent_and_probed(batch["voltage"].T, columns)
    terms, probes = {}, iter(jnp.split(probed, len(others), axis=1))
    for name, own in points.items():
        values = jnp.concatenate([again if v is first else next(probes) for v in own], axis=1)
        terms[name] = safe_root(jnp.sum(jnp.square(MESSAGE_TERMS[name][1](values, x))))
    return learner.squared_error(params, **batch, message=sent), terms


def _matrix_term(network: str, size: Callable) -> Callable:
    """Sum of `size` of the entries of a network's matrices."""

    def term(learner: Learner, params, batch, x_norm) -> Float[Array, ""]:
        matrices = [leaf for leaf in jax.tree.leaves(params.get(network, ())) if leaf.ndim == 2]
        return sum((jnp.sum(size(m)) for m in matrices), jnp.zeros(()))

    return term


message_L1, update_L1 = (_matrix_term(f"{name}_network", jnp.abs) for name in ("message", "update"))
message_L2, update_L2 = (_matrix_term(f"{name}_network", jnp.square) for name in ("message", "update"))


def _counts(name: str, coefficients, with_curvature: bool) -> bool:
    """Whether a regulariser is evaluated."""
    return name in coefficients and (with_curvature or name not in CURVATURE_COEFFICIENTS)


def regularisers(
    learner: Learner, params, coefficients, batch, x_norm, with_curvature: bool = True, known: Mapping | None = None
) -> dict:
    """Each regulariser, multiplied by its coefficient, by its name; on the first frame of the batch.

    Without `with_curvature` those of `CURVATURE_COEFFICIENTS` are 0 whatever their coefficients. A coefficient that is
    not given is 0. `known`: values that need not be computed.
    """
    known = known or {}

    def value(name: str) -> Float[Array, ""]:
        if not _counts(name, coefficients, with_curvature):
            return jnp.zeros(())
        term = known[name] if name in known else registry.regulariser[name](learner, params, batch, x_norm)
        return coefficients[name] * term

    return {name: value(name) for name in coefficient_names(learner.learns_stimulus)}


def _first_frame(learner: Learner, model: MessagePassing, batch):
    """Inputs of f at the first frame, without gradient: (voltage, msg, stimulus), each (N, 1), and the embedding."""
    graph = learner.graph(batch["voltage"][:1], batch["luminance"][:1])
    signals = graph.nodes["voltage"], model.message_sum(graph), graph.nodes["stimulus"]
    return jax.lax.stop_gradient((signals, model.embedding[...]))


def update_bend(learner: Learner, params, batch, x_norm) -> Float[Array, ""]:
    """Norm of the second differences of f, 1/s. Only f's own parameters get a gradient."""
    model = learner.bind(params)
    if model.message_probe(batch["voltage"][0], learner.connectome) is None:
        return jnp.zeros(())  # the equation is known
    signals, embedding = _first_frame(learner, model, batch)
    f, state = model.update_fn()

    def second_difference(state, no_rows_and_fixed):
        (p, q), embedding = no_rows_and_fixed[1]
        points = tuple(jnp.concatenate([a, 0.5 * (a + b), b], axis=1) for a, b in zip(p, q, strict=True))
        values = f(state, points, embedding)
        return values[:, 0] - 2.0 * values[:, 1] + values[:, 2]

    zero = jnp.zeros_like(signals[0])
    fixed = (signals, (batch["voltage"][-1:].T, zero, zero)), embedding
    n_segments = model.n_segments(3 * zero.size)
    return safe_root(chunked_map.square_sum(second_difference, n_segments, state, None, fixed))


def light_diff(learner: Learner, params, batch, x_norm) -> Float[Array, ""]:
    """Norm of the decrease of f with luminance at the input neurons; `batch["luminance"]` is the field's."""
    model = learner.bind(params)
    signals, embedding = _first_frame(learner, model, batch)
    inputs = jnp.asarray(learner.connectome.inputs)
    voltage, msg, stimulus = (x[inputs] for x in signals)
    f, state = model.update_fn()
    before = f(state, (voltage, msg, stimulus), embedding[inputs])
    after = f(state, (voltage, msg, stimulus + LUMINANCE_STEP), embedding[inputs])
    return safe_root(jnp.sum(jnp.square(jax.nn.relu(before - after))))


def loss(learner: Learner, params, coefficients, batch, x_norm, with_curvature: bool = True):
    """Total loss and its data term.

    **Arguments:**

    - `coefficients`: by the names in `COEFFICIENTS`.
    - `batch`: `voltage` (B, N), `luminance` (B, n_col) and `target` (B, N) in 1/s.
    - `x_norm`: 1.5 std(v), a scalar.
    - `with_curvature`: whether the regularisers of `CURVATURE_COEFFICIENTS` are evaluated at all.
    """
    known: dict[str, Array] = {}
    if learner.bind(params).joins_messages:
        names = [name for name in MESSAGE_TERMS if _counts(name, coefficients, with_curvature)]
        square, known = _joined(learner, params, names, batch, x_norm)
    else:
        square = learner.squared_error(params, batch["voltage"], batch["luminance"], batch["target"])
    data = safe_root(square)
    terms = regularisers(learner, params, coefficients, batch, x_norm, with_curvature, known)
    return data + sum(terms.values()), data


def rollout_loss(learner: Learner, params, coefficients, batch, x_norm, dt, with_curvature: bool = True):
    """The loss of R Euler steps through the learner, and its data term.

    The error of step s is (u_{s+1} - w_{s+1}) / dt with u the learner's rollout from the first voltage and
    w_{s+1} = v_s + dt y_s the recorded state without the noise of that step. With R = 1 it is `loss`.

    **Arguments:** as in `loss`; `batch` has a second axis of R consecutive frames: `voltage` (B, R, N) and so
    on; `dt` in s.
    """

    def step(state, frame):
        change = learner.derivative(params, state, frame["luminance"])
        error = (state - frame["voltage"]) / dt + change - frame["target"]
        return state + dt * change, jnp.sum(jnp.square(error))

    frames = {name: x.swapaxes(0, 1) for name, x in batch.items()}
    _, squares = jax.lax.scan(step, batch["voltage"][:, 0], frames)
    data = safe_root(jnp.sum(squares))
    first_frames = {name: x[:, 0] for name, x in batch.items()}
    terms = regularisers(learner, params, coefficients, first_frames, x_norm, with_curvature)
    return data + sum(terms.values()), data
