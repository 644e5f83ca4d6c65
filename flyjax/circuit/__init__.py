"""The circuit room: the connectome, its parameters and its dynamics."""

from flyjax.circuit.connectome import Connectome, build_connectome, lattice
from flyjax.circuit.dynamics import SOLVERS, derivative, simulate, simulate_chunks, steady_state
from flyjax.circuit.parameters import Parameters, expand

__all__ = [
    "SOLVERS",
    "Connectome",
    "Parameters",
    "build_connectome",
    "derivative",
    "expand",
    "lattice",
    "simulate",
    "simulate_chunks",
    "steady_state",
]
