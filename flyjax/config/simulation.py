"""The `simulation` section of a config file: the circuit, what it sees, and how it is recorded."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from flyjax.config.strict import StrictModel

#: Of NumPy and JAX.
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Simulation(StrictModel):
    """The ground truth, its stimulus and how it is integrated."""

    recording: str | None = Field(
        None,
        description="file of a recording of one's own (npz, zarr) that is learned from instead of a simulation; most "
        "other keys of this section then have no meaning",
    )
    extent: int = Field(8, ge=0, le=15, description="radius of the hexagonal eye, columns; flyvis uses 8")
    connectome: str | None = Field(
        None,
        description="a circuit of one's own: a folder with tables of neurons and edges, or a file like flyvis'; by "
        "default the fly's",
    )
    parameters: str = Field(
        "sampled",
        description="'sampled', 'flow/0000/000', the path of a checkpoint, or weight, tau and v_rest of one's own: an "
        ".npz or a folder with tables",
    )
    parameters_seed: Seed = Field(0, description="seed of sampled parameters")
    visual_input_type: str = Field("DAVIS", description="training stimulus, a name of flyjax.stimulus")
    test_visual_input_type: str | None = Field(None, description="held-out stimulus; by default the other kind")
    n_frames: int = Field(64_000, ge=16, le=1_000_000, description="training frames")
    n_test_frames: int = Field(
        1_000, ge=16, le=100_000, description="held-out frames, always noise-free; of a recording of one's own the last"
    )
    delta_t: float = Field(
        0.02, gt=0, le=60, description="integration step and frame interval, s; 0.001 to 0.05 in a simulation"
    )
    clamp_tau: bool = Field(True, description="integrate with max(tau, delta_t), as flyvis does")
    solver: Literal["euler", "heun", "midpoint", "ralston", "bosh3", "tsit5", "dopri5", "dopri8"] = Field(
        "euler", description="name of the diffrax solver"
    )
    initial: Literal["grey", "rest", "fade_in"] = Field(
        "grey", description="initial state: after grey for warm_up, V_rest, or after 1 s from grey to frame 0"
    )
    warm_up: float = Field(1.0, gt=0, le=60, description="duration of grey before the first frame, s")
    data_path: str | None = Field(
        None, description="folder of the video data set, where one is needed; for video also a film"
    )
    frame_rate: Literal["default", "native", "resampled"] = Field(
        "default",
        description="of videos: one frame per step (native, the default of DAVIS and video), or at their own speed, "
        "resampled to 1/delta_t (resampled, the default of optical_flow)",
    )
    folder_frame_rate: float = Field(
        24.0, gt=0, le=10_000, description="frames per second of videos that are folders of frames; films state theirs"
    )
    video_pipeline: Literal["flyjax", "flyvis_gnn"] = Field(
        "flyjax",
        description="how DAVIS and video are shown: flyjax, or exactly as flyvis-gnn did, which also sets clamp_tau, "
        "warm_up and test_visual_input_type where they are not given",
    )
    blank_prefix_fraction: float = Field(
        0.0, ge=0, lt=1, description="first part of every clip, of both splits, in which nothing is shown"
    )
    blank_prefix_luminance: float = Field(
        0.0, ge=0, le=1, description="what is shown instead: 0 is no input, 0.5 is grey"
    )
    measurement_noise_level: float = Field(
        0.0, ge=0, le=10, description="std of the measurement noise in training voltages"
    )
    target: Literal["exact", "difference"] = Field(
        "exact",
        description="training target: the right-hand side, or the difference to the next recorded voltage over "
        "delta_t, noise included",
    )
    null_edges: float = Field(
        0.0, ge=0, le=10, description="edges given to the learner that do not exist, per true edge"
    )
    null_edges_kind: Literal["per_source", "random"] = Field(
        "per_source", description="sources of null edges: each neuron in proportion to its true edges, or any neuron"
    )
    removed_edges: float = Field(0.0, ge=0, lt=1, description="share of true edges withheld from the learner")
    cut_edges: float = Field(
        0.0, ge=0, lt=1, description="share of edges removed before the simulation, from circuit and learner"
    )
    hidden_neurons: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the neurons that are not recorded: the learner knows neither them nor their edges",
    )
    observe_every: int = Field(
        1,
        ge=1,
        le=100,
        description="training frames are recorded only every so many steps; targets are then the "
        "differences over the gap",
    )
    n_recordings: int = Field(
        1, ge=1, le=64, description="recordings, of other scenes and noise, among which the training frames are divided"
    )
    voltage_dtype: Literal["float32", "float16"] = Field(
        "float32", description="storage type of training voltages; float16 rounds them"
    )
    store_derivative: bool = Field(
        False, description="store dV/dt with the training voltages instead of computing it when needed"
    )
    seed: Seed = Field(0, description="seed of the stimulus and the process noise")

    @field_validator("delta_t")
    @classmethod
    def _fine_enough(cls, delta_t: float, info: ValidationInfo) -> float:
        if info.data.get("recording") is None and not 0.001 <= delta_t <= 0.05:
            raise ValueError("out of range, at least 0.001 and at most 0.05")
        return delta_t

    @model_validator(mode="before")
    @classmethod
    def _published_pipeline(cls, data):
        if isinstance(data, dict) and data.get("video_pipeline") == "flyvis_gnn":
            test = data.get("test_visual_input_type") or data.get("visual_input_type", "DAVIS")
            return {"clamp_tau": False, "warm_up": 2.0, **data, "test_visual_input_type": test}
        return data

    @model_validator(mode="after")
    def _parts_have_ends(self):
        if self.n_recordings > 1 and (self.target == "difference" or self.observe_every > 1):
            raise ValueError(
                "target: difference and observe_every need the voltage after every frame, which parts lack at their "
                "ends: set n_recordings to 1"
            )
        if self.measurement_noise_level and (self.hidden_neurons or self.observe_every > 1):
            raise ValueError(
                "measurement_noise_level does not work with hidden_neurons or observe_every: set one of them to 0 or 1"
            )
        return self

    @property
    def n_observed(self) -> int:
        """Frames of the training recording."""
        return self.n_frames // self.observe_every
