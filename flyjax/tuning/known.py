"""What experiments have found: preferred directions of T4 and T5, and the contrast that cell types prefer.

As collected for flyvis (Lappalainen et al. 2024, Nature, and the recordings that it cites; directions: Maisak et al.
2013, Nature). Degrees counter-clockwise from rightwards, in the layout of flyvis' eye.
"""

#: T4 is measured with ON edges, T5 with OFF edges.
PREFERRED_DIRECTIONS = {
    "T4a": 180.0, "T4b": 0.0, "T4c": 90.0, "T4d": 270.0, "T5a": 180.0, "T5b": 0.0, "T5c": 90.0, "T5d": 270.0
}  # fmt: skip
ON_TYPES = (
    *(f"R{k}" for k in range(1, 9)), "L5", "C3", "CT1(M10)", "Mi1", "Mi4", "Tm3", "T4a", "T4b", "T4c", "T4d"
)  # fmt: skip
OFF_TYPES = (
    "L1", "L2", "L3", "L4", "CT1(Lo1)", "Mi9", "Tm1", "Tm2", "Tm4", "Tm9", "T5a", "T5b", "T5c", "T5d"
)  # fmt: skip
#: 1 for ON, -1 for OFF; the other cell types have no established preference.
POLARITY = {**dict.fromkeys(ON_TYPES, 1), **dict.fromkeys(OFF_TYPES, -1)}
