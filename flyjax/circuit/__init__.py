"""The circuit room: the connectome, its parameters and its dynamics."""

from flyjax.circuit.connectome import Connectome, build_connectome, lattice
from flyjax.circuit.dynamics import derivative, simulate, simulate_chunks, steady_state
from flyjax.circuit.parameters import Parameters, TypeParameters, expand, load_flyvis_parameters, read_flyvis
from flyjax.circuit.rollout import SOLVERS
from flyjax.circuit.sampling import sample_parameters

__all__ = [
    "SOLVERS",
    "Connectome",
    "Parameters",
    "TypeParameters",
    "build_connectome",
    "derivative",
    "expand",
    "lattice",
    "load_flyvis_parameters",
    "read_flyvis",
    "sample_parameters",
    "simulate",
    "simulate_chunks",
    "steady_state",
]
