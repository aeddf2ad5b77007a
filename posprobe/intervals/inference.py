"""Settings shared by all intervals of an analysis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import LEAST_RESAMPLES, check_level, check_resamples
from posprobe.intervals.resampling import cluster_weights

__all__ = ["Inference"]

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Inference:
    """Settings shared by all intervals of an analysis.

    Parameters
    ----------
    level : float
        Nominal coverage of each interval, between 0 and 1.
    n_resamples : int
        Number of bootstrap samples (of items or sequences) for statistics that need no refit. At
        least 10; with fewer than 100 there is a warning.
    n_refits : int
        Number of bootstrap samples in which probes are fitted again. At least 10. A refit costs
        about as much as a hundred other samples, and only the standard error of refits is used, so
        few are enough.
    seed : int
        Seed of all resampling, between 0 and 2**63 - 1.
    n_jobs : int
        Number of processes that share an analysis, which gives the same numbers; -1 means one for
        each core.

    Raises
    ------
    DesignError
        If a field is out of range; the message names the field.

    Warns
    -----
    PosprobeWarning
        If `n_resamples` is below 100.

    Examples
    --------
    >>> from posprobe.intervals import Inference
    >>> inference = Inference(level=0.9)
    >>> inference.weights(12).shape
    (2000, 12)
    >>> inference.percent
    '90%'
    """

    level: float = 0.95
    n_resamples: int = 2000
    n_refits: int = 40
    seed: int = 0
    n_jobs: int = -1

    def __post_init__(self) -> None:
        check_level(self.level)
        check_resamples(self.n_resamples)
        check_resamples(self.n_refits, "n_refits", few=LEAST_RESAMPLES)
        if not 0 <= self.seed <= LARGEST_SEED:
            raise DesignError(f"seed={self.seed} must be between 0 and {LARGEST_SEED}")
        if self.n_jobs == 0 or self.n_jobs < -1:
            raise DesignError(f"n_jobs={self.n_jobs} must be -1 (all cores), or 1 or more")

    @property
    def percent(self) -> str:
        """The level as a percentage, as reports print it."""
        return f"{100 * self.level:g}%"

    def weights(self, n_clusters: int) -> Array:
        """Draw bootstrap weights, the same at every call; see `cluster_weights`.

        Parameters
        ----------
        n_clusters : int
            Number of items or sequences.

        Returns
        -------
        ndarray of shape (n_resamples, n_clusters)
            Read only, since they are drawn once.
        """
        return _drawn(n_clusters, self.n_resamples, self.seed)

    def refit_weights(self, n_clusters: int) -> Array:
        """Draw bootstrap weights for refits, the same at every call; see `cluster_weights`.

        Parameters
        ----------
        n_clusters : int
            Number of items or sequences.

        Returns
        -------
        ndarray of shape (n_refits, n_clusters)
            Read only, since they are drawn once.
        """
        return _drawn(n_clusters, self.n_refits, self.seed)


@lru_cache(maxsize=16)
def _drawn(n_clusters: int, n_resamples: int, seed: int) -> Array:
    weights = cluster_weights(n_clusters, n_resamples, seed).astype(float)
    weights.setflags(write=False)
    return weights
