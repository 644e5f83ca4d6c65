"""What the fly sees: built-in scenes, videos and optic flow, by name."""

from flyjax.stimulus.registry import NAMES, available, check_name, fingerprint, luminance, other_kind

__all__ = ["NAMES", "available", "check_name", "fingerprint", "luminance", "other_kind"]
