"""Memory and arithmetic of a training: what decides which trainings share a program, and how long they take."""

from typing import NamedTuple

import jax

from flyjax.circuit import build_connectome
from flyjax.config import Model, Simulation
from flyjax.models import Learner, make_learner
from flyjax.models.chunked_map import ACCELERATOR_ROWS, CPU_ROWS
from flyjax.training.data import TARGET_BYTES
from flyjax.utils.system import available_ram

#: Operations that take as long as an edge's message sum, forward and backward, and its share of Adam in a model without
#: networks: a known_ode step at extent 6, batch 1, took 0.24 of the CPU time of variant A's (width 32); this says 0.26.
OPERATIONS_PER_EDGE = 300


class Memory(NamedTuple):
    """Bytes that may be used, where the figure comes from, and whether the devices share them."""

    free: int  #: of one device, or of the machine where they are shared
    source: str
    shared: bool  #: CPU devices share one memory and each has a copy of the recordings


class Sizes(NamedTuple):
    """What a training's memory depends on."""

    n_frames: int
    n_neurons: int
    n_columns: int
    n_edges: int
    n_params: int
    stores_target: bool = True  #: derivatives are on the device; else they are computed in the step


def device_memory() -> Memory:
    """What is free now on the devices that train."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    shared = device.platform == "cpu"
    if not shared and "bytes_limit" in stats:
        return Memory(stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"free on each {device.device_kind}", False)
    source = "available RAM" if shared else "available RAM, as the accelerator does not report its own"
    return Memory(available_ram(), source, shared)


def sizes_of(learner: Learner, n_frames: int, stores_target: bool = True) -> Sizes:
    """Sizes of a learner's training on a recording of so many frames."""
    c = learner.connectome
    params = jax.eval_shape(learner.init, jax.random.key(0))
    n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Sizes(n_frames, c.n_neurons, c.n_columns, c.n_edges, n_params, stores_target)


def sizes_without_data(simulation: Simulation, model: Model) -> Sizes:
    """The same from a configuration alone: neither checkpoint nor videos are needed."""
    connectome = build_connectome(simulation.extent)
    # Without a known stimulus targets cannot be computed in the step.
    exact = not simulation.measurement_noise_level and simulation.target == "exact" and model.stimulus == "given"
    large = exact and 4 * simulation.n_frames * connectome.n_neurons > TARGET_BYTES
    sizes = sizes_of(make_learner(connectome, model), simulation.n_frames, not large)
    true = sizes.n_edges * (1 - simulation.cut_edges)
    edges = round(true * (1 - simulation.removed_edges + simulation.null_edges))
    return sizes._replace(n_edges=edges, n_params=sizes.n_params + edges - sizes.n_edges)


def recording_bytes(sizes: Sizes) -> int:
    """Device memory of one recording: voltages, targets where they are stored, and luminance."""
    return 4 * sizes.n_frames * ((1 + sizes.stores_target) * sizes.n_neurons + sizes.n_columns)


def has_networks(model: Model) -> bool:
    """Whether a variant learns functions, not only the constants of a known equation."""
    return not model.variant.startswith("known_ode")


def lane_bytes(sizes: Sizes, model: Model, batch_size: int, shared: bool = False) -> dict[str, int]:
    """Device memory of one lane by its use; activations are an upper estimate.

    `params` the parameters, `adam` both moments, `step` the gradient and the new values of all three
    while a step is taken, `activations` what the backward pass stores: two arrays per hidden layer of
    the rows of the batch in both networks and of the regularisers' three voltages, and messages. Variant B
    evaluates the message network on edges, a segment at a time (smaller segments on a CPU, whose memory is
    `shared`), and stores the inputs of each edge; a known equation has messages alone.
    """
    rows = (2 * batch_size + 3) * sizes.n_neurons
    messages = 2 * batch_size * sizes.n_edges
    if model.variant == "B":
        rows += min(batch_size * sizes.n_edges, 2 * (CPU_ROWS if shared else ACCELERATOR_ROWS))
        # Of every edge: two voltages, the message and their gradients, both embeddings and theirs.
        messages += sizes.n_edges * (6 * batch_size + 6 * model.embedding_size)
    hidden = 2 * rows * model.width * (model.n_layers - 1) if has_networks(model) else 8 * batch_size * sizes.n_neurons
    return {
        "params": 4 * sizes.n_params,
        "adam": 8 * sizes.n_params,
        "step": 20 * sizes.n_params,
        "activations": 4 * (hidden + messages),
    }


def gflop_per_frame(model: Model, batch_size: int, n_neurons: int, n_edges: int, with_curvature: bool = False) -> float:
    """Multiply-adds of both networks, forward and backward, 2 operations each, per training frame in 1e9.

    In variant B the message network is evaluated on each of `n_edges`, not of the neurons. The message sum is
    left out: 3 x 2 x 434,112 operations at extent 8, a quarter of a percent of A's. A known equation consists of
    it; it is bound by memory, so an edge counts as `OPERATIONS_PER_EDGE`.
    """

    def multiply_adds(n_signals: int, n_embedded: int = 1) -> int:
        hidden = (model.n_layers - 2) * model.width**2
        return (n_signals + n_embedded * model.embedding_size) * model.width + hidden + model.width

    if not has_networks(model):
        return OPERATIONS_PER_EDGE * n_edges / 1e9
    update, message, senders = multiply_adds(3), multiply_adds(1), n_neurons
    if model.variant == "B":
        message, senders = multiply_adds(2, 2), n_edges
    regularisers = 3.0 * n_neurons * message  # three voltages of one frame of the batch
    if with_curvature:  # two more of g, three of f, and the message sum, forward alone
        regularisers += 2 * n_neurons * message + 3 * n_neurons * update + senders * message / 3
    return 6e-9 * (n_neurons * update + senders * message + regularisers / batch_size)
