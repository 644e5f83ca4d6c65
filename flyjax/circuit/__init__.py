"""The circuit: the connectome and its parameters."""

from flyjax.circuit.build import build_connectome
from flyjax.circuit.connectome import Connectome
from flyjax.circuit.hexgrid import lattice
from flyjax.circuit.parameters import Parameters, TypeParameters, expand, load_flyvis_parameters, read_flyvis
from flyjax.circuit.tables import load_parameters

__all__ = [
    "Connectome",
    "Parameters",
    "TypeParameters",
    "build_connectome",
    "expand",
    "lattice",
    "load_flyvis_parameters",
    "load_parameters",
    "read_flyvis",
]
