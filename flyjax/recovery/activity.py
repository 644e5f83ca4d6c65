r"""What the neurons do: the recording that drives a node, and the network that was learned from it.

A source that never rises above zero sends nothing, so its synapses leave no trace in the data; one
that is always above zero is linear, so its autapse cannot be told from its leak. These shares are
the first thing to look at when a recovery fails.
"""

from __future__ import annotations

import numpy as np

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.recovery.metrics import true_tau
from flyjax.recovery.readout import moments, per_recording

#: Frames of the principal components; more would not change them.
RANK_FRAMES = 500
#: Share of the variance that the counted components hold.
RANK_VARIANCE = 0.99


def rank(voltage: np.ndarray) -> tuple[int | None, float | None]:
    """Principal components that hold 99 % of the variance, and the participation ratio.

    From at most 500 frames, evenly spread; (None, None) where nothing moves.
    """
    frames = np.unique(np.linspace(0, len(voltage) - 1, RANK_FRAMES).round().astype(int))
    x = np.asarray(voltage[frames], np.float64)
    x -= x.mean(axis=0)
    gram = x @ x.T if len(frames) <= x.shape[1] else x.T @ x
    spectrum = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    total = spectrum.sum()
    if not total > 1e-20:
        return None, None
    n = int(np.searchsorted(np.cumsum(spectrum) / total, RANK_VARIANCE) + 1)
    return min(n, len(spectrum)), float(total**2 / np.sum(spectrum**2))


def describe(voltage: np.ndarray) -> dict:
    """Shares silent (never above zero) and always active, mean, std, rank of (T, N) voltages."""
    low, high = voltage.min(axis=0), voltage.max(axis=0)
    mean, std = moments(voltage)
    n_components, participation = rank(voltage)
    return {
        "silent": float(np.mean(high <= 0)),
        "always_active": float(np.mean(low > 0)),
        "mean": float(mean.mean()),
        "std": float(std.mean()),
        "rank": n_components,
        "participation_ratio": participation,
    }


def signal_to_noise(recording: Recording) -> float | None:
    """Median over neurons of (variance of the state / variance that the process noise alone gives its leak) - 1.

    A leak 1 - dt/tau* turns noise of variance sigma^2 per step into sigma^2 / (1 - (1 - dt/tau*)^2). The variance
    of the state is that of the recorded voltage less what measuring added. Needs the true tau*.
    None for a recording without process noise.
    """
    sigma = recording.noise_model_level
    if not sigma > 0:
        return None
    _, std = moments(recording.voltage)
    added = (
        recording.simulation.measurement_noise_level
        if measurement_noise_std(recording.simulation, recording.split)
        else 0.0
    )
    leak = 1.0 - recording.simulation.delta_t / true_tau(recording).astype(np.float64)
    by_noise = sigma**2 / np.maximum(1.0 - leak**2, 1e-12)
    return float(max(np.median((std**2 - added**2) / by_noise) - 1.0, 0.0))


@per_recording
def recording_activity(recording: Recording) -> dict:
    """`describe` of a recording with its signal-to-noise ratio; cached, as many nodes share it."""
    return {**describe(np.asarray(recording.voltage)), "snr": signal_to_noise(recording)}


def activity(train_recording: Recording, run) -> dict:
    """activity.json: the driving recording, the rolled-out network and where it diverged.

    `run` is a `Rollout`; the states from its divergence on are left out, and None stands for the
    network's activity where fewer than two frames are left, or where there is no run (an unknown stimulus).
    """
    if run is None:
        return {"recording": recording_activity(train_recording), "rollout": None, "divergence_frame": None}
    end = len(run.voltage) if run.divergence_frame is None else run.divergence_frame
    return {
        "recording": recording_activity(train_recording),
        "rollout": describe(run.voltage[:end]) if end >= 2 else None,
        "divergence_frame": run.divergence_frame,
    }


def activity_line(content: dict) -> str:
    """One line for the log's `Activity:` entry, of the voltages alone: a search without the truth is shown it too."""

    def of(part):
        shown = "none" if part["rank"] is None else part["rank"]
        return (
            f"{part['silent']:.0%} silent, {part['always_active']:.0%} always active, "
            f"v {part['mean']:.2f} +- {part['std']:.2f}, rank {shown}"
        )

    text = of(content["recording"])
    if content["divergence_frame"] is not None:
        return f"{text}; the rollout diverged at frame {content['divergence_frame']}"
    if content["rollout"] is None:
        return f"{text}; no rollout, the stimulus is unknown"
    return f"{text}; rollout {of(content['rollout'])}"
