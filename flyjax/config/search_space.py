"""What a search may vary, and in which ranges."""

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from flyjax.config.strict import StrictModel

#: Values in a list: a list or a tuple.
Values = Annotated[tuple[Any, ...], Strict(False)]
#: Whole numbers up to here are floats without rounding.
MAX_INT = 2**53


class Range(StrictModel):
    """A range of one tunable parameter: an interval on a scale, or a list of values."""

    min: float | None = Field(None, description="lower bound, included")
    max: float | None = Field(None, description="upper bound, included")
    scale: Literal["log", "linear", "int", "choice"] = Field(
        "linear", description="how values are drawn: log-uniform, uniform, whole numbers, or from a list"
    )
    values: Values | None = Field(None, description="the list, where scale is choice")

    @model_validator(mode="after")
    def _consistent(self):
        if self.scale == "choice":
            if not self.values or (self.min, self.max) != (None, None):
                raise ValueError("a choice needs 'values', and neither min nor max")
        elif self.values is not None:
            raise ValueError("'values' need scale: choice")
        elif self.min is None or self.max is None or not self.min < self.max:
            raise ValueError("needs min < max")
        elif self.scale == "int" and not (self.min.is_integer() and self.max.is_integer()):
            raise ValueError("a range of whole numbers needs whole bounds")
        elif self.scale == "int" and max(abs(self.min), abs(self.max)) > MAX_INT:
            raise ValueError(f"a range of whole numbers has bounds of at most {MAX_INT:,}")
        elif self.scale == "log" and self.min <= 0:
            raise ValueError("a log range needs min > 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values of a choice, or both bounds."""
        return self.values or (self.min, self.max)

    def contains(self, value: Any) -> bool:
        """Whether `value` is of the right type and inside the range."""
        if self.scale == "choice":
            return any(isinstance(value, bool) == isinstance(v, bool) and value == v for v in self.ends)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        assert self.min is not None and self.max is not None  # checked above
        # The bounds first, because int() fails for NaN and infinity.
        return self.min <= value <= self.max and (self.scale != "int" or value == int(value))

    def describe(self) -> str:
        """The range in words."""
        if self.scale == "choice":
            return "one of " + ", ".join(map(str, self.ends))
        return f"{self.min:g} to {self.max:g}" + (" (log)" if self.scale == "log" else "")


def _interval(low: float, high: float, scale: Literal["log", "linear", "int"] = "linear") -> Range:
    return Range(min=low, max=high, scale=scale)


#: The protocol's ranges (protocol.md states the same; a test compares them).
PROTOCOL_RANGES = {
    "learning_rate_W_start": _interval(1e-4, 1e-2, "log"),
    "learning_rate_start": _interval(1e-5, 1e-3, "log"),
    "learning_rate_embedding_start": _interval(1e-5, 1e-3, "log"),
    "coeff_W_L1": _interval(1e-6, 1e-3, "log"),
    "coeff_edge_diff": _interval(0, 1000),
    "coeff_edge_norm": _interval(0, 10),
    "noise_model_level": _interval(0, 0.2),
    "batch_size": Range(scale="choice", values=(1, 2, 4)),
    "data_augmentation_loop": _interval(10, 100, "int"),
}
PROTOCOL_SIMULATION_RANGES = {
    "visual_input_type": Range(scale="choice", values=("DAVIS", "optical_flow")),
    "n_frames": _interval(32_000, 128_000, "int"),
    "delta_t": _interval(0.01, 0.05),
}
#: Training parameters that a search may vary; the first nine are the protocol's.
TUNABLE = (
    *PROTOCOL_RANGES,
    "coeff_message_L1",
    "coeff_message_L2",
    "coeff_update_L1",
    "coeff_update_L2",
    "coeff_edge_bend",
    "coeff_update_bend",
    "learning_rate_field_start",
    "coeff_light_diff",
    "n_projections",
)
#: Simulation parameters that a search may vary, at the start of a block only.
SIMULATION_TUNABLE = tuple(PROTOCOL_SIMULATION_RANGES)
