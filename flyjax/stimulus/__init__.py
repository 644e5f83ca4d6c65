"""What the fly sees: built-in scenes, laboratory stimuli, videos and optic flow, by name."""

from flyjax.stimulus.registry import (
    DATA_SETS,
    NAMES,
    available,
    fingerprint,
    flow,
    luminance,
    other_kind,
    parts_of,
)

__all__ = [
    "DATA_SETS",
    "NAMES",
    "available",
    "fingerprint",
    "flow",
    "luminance",
    "other_kind",
    "parts_of",
]
