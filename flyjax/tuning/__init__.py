"""The fly's tuning: motion, flashes and receptive fields of a circuit or of a trained network."""

from flyjax.tuning.fly import Circuit, Network
from flyjax.tuning.indices import (
    direction_selectivity,
    flash_response_index,
    orientation_selectivity,
    preferred_direction,
)
from flyjax.tuning.protocols import (
    EdgeResponses,
    FlashResponses,
    ReceptiveFields,
    flashes,
    moving_edges,
    receptive_fields,
)
from flyjax.tuning.stimuli import Flashes, MovingEdges, WhiteNoise

__all__ = [
    "Circuit",
    "EdgeResponses",
    "FlashResponses",
    "Flashes",
    "MovingEdges",
    "Network",
    "ReceptiveFields",
    "WhiteNoise",
    "direction_selectivity",
    "flash_response_index",
    "flashes",
    "moving_edges",
    "orientation_selectivity",
    "preferred_direction",
    "receptive_fields",
]
