"""The circuit in time: its right-hand side and the diffrax solve."""

from flyjax.simulation.rollout import derivative, initial_state, simulate, simulate_chunks, steady_state
from flyjax.simulation.solve import SOLVERS

__all__ = ["SOLVERS", "derivative", "initial_state", "simulate", "simulate_chunks", "steady_state"]
