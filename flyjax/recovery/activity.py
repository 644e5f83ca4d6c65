"""Activity of the neurons in the training recording, and in the trained network's free rollout.

A source that never rises above zero sends nothing, so its synapses leave no trace in the data; the autapse of a neuron
that is always above zero cannot be separated from its leak. These shares explain many failures of recovery.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from flyjax.data.recording import Recording
from flyjax.data.splits import measurement_noise_std
from flyjax.recovery.metrics import true_tau
from flyjax.recovery.rollout import Rollout
from flyjax.recovery.samples import Moments, moments, per_recording, spread_frames, voltage_moments

#: Frames of the principal components; more would not change them.
RANK_FRAMES = 500
#: Share of the variance that the counted components explain.
RANK_VARIANCE = 0.99


def rank(voltage: Float[np.ndarray, "T N"]) -> tuple[int | None, float | None]:
    """Number of principal components that explain 99 % of the variance, and the participation ratio.

    From at most 500 frames, evenly spread; (None, None) where nothing moves.
    """
    x = np.asarray(voltage[spread_frames(len(voltage), RANK_FRAMES)], np.float64)
    x -= x.mean(axis=0)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    spectrum = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
    total = spectrum.sum()
    if not total > 1e-20:
        return None, None
    n = int(np.searchsorted(np.cumsum(spectrum) / total, RANK_VARIANCE) + 1)
    return min(n, len(spectrum)), float(total**2 / np.sum(spectrum**2))


def describe(voltage: Float[np.ndarray, "T N"], known: Moments | None = None) -> dict:
    """Shares of silent (never above zero) and always active neurons, mean, std and rank of the voltages."""
    mean, std, low, high = known or moments(voltage)
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
    """Median over neurons of the variance of the state relative to that of its leaky process noise, less 1.

    A leak 1 - dt/tau* turns noise of variance sigma^2 per step into sigma^2 / (1 - (1 - dt/tau*)^2). The variance of
    the state is that of the recorded voltage less that of the measurement noise. Needs the true tau*.
    None for a recording without process noise.
    """
    sigma = recording.noise_model_level
    if not sigma > 0:
        return None
    leak = 1.0 - recording.simulation.delta_t / true_tau(recording).astype(np.float64)
    noise_variance = sigma**2 / np.maximum(1.0 - leak**2, 1e-12)
    state_variance = (
        voltage_moments(recording).std ** 2 - measurement_noise_std(recording.simulation, recording.split) ** 2
    )
    return float(max(np.median(state_variance / noise_variance) - 1.0, 0.0))


@per_recording
def recording_activity(recording: Recording) -> dict:
    """`describe` of a recording with its signal-to-noise ratio."""
    return {**describe(recording.voltage, voltage_moments(recording)), "snr": signal_to_noise(recording)}


def activity(train_recording: Recording, run: Rollout | None) -> dict:
    """Content of activity.json: the training recording, the rollout and the frame at which it diverged.

    The rollout's entry is None where there is no rollout (unknown stimulus) or it has fewer than two frames before
    its divergence.
    """
    diverged = run.divergence_frame if run else None
    voltage = run.voltage[:diverged] if run else np.empty((0, 0))
    return {
        "recording": recording_activity(train_recording),
        "rollout": describe(voltage) if len(voltage) >= 2 else None,
        "divergence_frame": diverged,
    }


def activity_line(content: dict) -> str:
    """One line for the log's `Activity:` entry, from the voltages alone: a blind search shows it too."""

    def describe_line(part: dict) -> str:
        return (
            f"{part['silent']:.0%} silent, {part['always_active']:.0%} always active, "
            f"v {part['mean']:.2f} +- {part['std']:.2f}, rank {'none' if part['rank'] is None else part['rank']}"
        )

    text = describe_line(content["recording"])
    if content["divergence_frame"] is not None:
        return f"{text}; the rollout diverged at frame {content['divergence_frame']}"
    if content["rollout"] is None:
        return f"{text}; no rollout, the stimulus is unknown"
    return f"{text}; rollout {describe_line(content['rollout'])}"
