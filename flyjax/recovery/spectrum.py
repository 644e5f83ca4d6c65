"""Eigenvalues of W as a matrix from senders to receivers: the modes that a circuit amplifies."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackNoConvergence, eigs

from flyjax.recovery.metrics import Metrics, put_fit

#: Up to so many neurons all eigenvalues are computed, beyond it the N_LARGEST by magnitude.
ALL_UP_TO = 600
N_LARGEST = 100


def spectrum(connectome, weight: Float[np.ndarray, " E"]) -> Complex[np.ndarray, " k"] | None:
    """Eigenvalues by falling magnitude; None where weights are not finite or the iteration did not converge.

    All of them up to 600 neurons, the 100 largest beyond (implicitly restarted Arnoldi, ARPACK), which may count an
    exactly repeated one, such as equal autapses, only once.
    """
    weight, n = np.asarray(weight, np.float64), connectome.n_neurons
    if not np.isfinite(weight).all():
        return None
    matrix = sp.csr_matrix((weight, (connectome.receivers, connectome.senders)), shape=(n, n))
    if n <= ALL_UP_TO:
        values = np.linalg.eigvals(matrix.toarray())
    else:
        # Fixed, so that equal weights give equal digits; random, because a start with the symmetries of the lattice
        # would miss all other modes.
        start = np.random.default_rng(0).normal(size=n)
        try:
            values = eigs(matrix, k=N_LARGEST, v0=start, tol=1e-8, return_eigenvectors=False)
        except ArpackNoConvergence:
            return None
    return values[np.lexsort((-values.imag, -values.real, -np.abs(values).round(9)))]


def spectrum_metrics(true, learned, suffix: str = "") -> Metrics:
    """Spectral radii, and spectrum_R2 of the sorted magnitudes; names of learned values end in `suffix`."""
    metrics, why = Metrics(), "the weights are not finite, or the eigenvalues did not converge"
    metrics.put("spectral_radius_true", None if true is None else abs(true[0]), why)
    metrics.put(f"spectral_radius{suffix}", None if learned is None else abs(learned[0]), why)
    if true is None or learned is None:
        metrics.put(f"spectrum_R2{suffix}", None, why)
    else:
        k = min(len(true), len(learned), N_LARGEST)  # without the many near zero, which would dominate
        put_fit(metrics, f"spectrum_R2{suffix}", np.abs(true[:k]), np.abs(learned[:k]))
    return metrics
