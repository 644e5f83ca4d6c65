"""The circuit: the connectome and its parameters."""

from flyjax.circuit.connectome import Connectome, build_connectome
from flyjax.circuit.hexgrid import lattice
from flyjax.circuit.parameters import Parameters, TypeParameters, expand, load_flyvis_parameters, read_flyvis

__all__ = [
    "Connectome",
    "Parameters",
    "TypeParameters",
    "build_connectome",
    "expand",
    "lattice",
    "load_flyvis_parameters",
    "read_flyvis",
]
