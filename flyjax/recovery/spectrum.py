"""Eigenvalues of W as a matrix from senders to receivers: does the learned circuit amplify what the true one does?"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackNoConvergence, eigs

from flyjax.recovery.metrics import Metrics, put_fit

#: Circuits of up to so many neurons have all their eigenvalues computed, larger ones the N_LARGEST by magnitude.
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
        try:
            # A fixed start, the same digits for the same weights; random, because one that shares the lattice's
            # symmetries would not see the other modes.
            start = np.random.default_rng(0).normal(size=n)
            values = eigs(matrix, k=N_LARGEST, v0=start, tol=1e-8, return_eigenvectors=False)
        except ArpackNoConvergence:
            return None
    return values[np.lexsort((-values.imag, -values.real, -np.abs(values).round(9)))]


def spectrum_metrics(true, learned, suffix: str = "") -> Metrics:
    """spectral_radius with the true one, and spectrum_R2 of the sorted magnitudes, names ending in `suffix`."""
    metrics, why = Metrics(), "the weights are not finite, or the eigenvalues did not converge"
    lost = true is None or learned is None
    metrics.put("spectral_radius_true", None if true is None else abs(true[0]), why)
    metrics.put(f"spectral_radius{suffix}", None if learned is None else abs(learned[0]), why)
    if lost:
        metrics.put(f"spectrum_R2{suffix}", None, why)
    else:
        k = min(len(true), len(learned), N_LARGEST)  # the many near zero would decide otherwise
        put_fit(metrics, f"spectrum_R2{suffix}", np.abs(true[:k]), np.abs(learned[:k]))
    return metrics
