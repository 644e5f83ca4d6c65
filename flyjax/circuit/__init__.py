"""The circuit room: the connectome, its parameters and its dynamics."""

from flyjax.circuit.connectome import Connectome, build_connectome, lattice

__all__ = ["Connectome", "build_connectome", "lattice"]
