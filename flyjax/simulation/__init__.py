"""The circuit in time: its right-hand side and the diffrax solve."""

from flyjax.simulation.chunks import SOLVERS
from flyjax.simulation.solve import derivative, simulate, simulate_chunks, steady_state

__all__ = ["SOLVERS", "derivative", "simulate", "simulate_chunks", "steady_state"]
