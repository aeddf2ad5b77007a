"""How every interval of an analysis is made, decided once."""

from __future__ import annotations

from dataclasses import dataclass

from posprobe.errors import DesignError
from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import check_level
from posprobe.intervals.resampling import cluster_weights

__all__ = ["Inference"]

LEAST = 20
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Inference:
    """How every interval of an analysis is made.

    Parameters
    ----------
    level : float
        Nominal coverage of each interval, between 0 and 1.
    n_resamples : int
        Bootstrap samples of items or sequences in which nothing is fitted anew, at least 20.
    n_refits : int
        Bootstrap samples in which probes are fitted anew, at least 20: only their standard error is
        used, and each costs a hundred of the others.
    seed : int
        Seed of all resampling.
    n_jobs : int
        Processes that refit; -1: as many as there are cores.

    Raises
    ------
    DesignError
        Naming the field that is out of range.

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
        for name in ("n_resamples", "n_refits"):
            count = getattr(self, name)
            if count < LEAST:
                raise DesignError(
                    f"{name}={count} are too few for an interval: ask for {LEAST} or more"
                )
        if not 0 <= self.seed <= LARGEST_SEED:
            raise DesignError(f"seed={self.seed} must be between 0 and {LARGEST_SEED}")
        if self.n_jobs == 0 or self.n_jobs < -1:
            raise DesignError(f"n_jobs={self.n_jobs} must be -1 (all cores), or 1 or more")

    @property
    def percent(self) -> str:
        """The level as a report writes it."""
        return f"{100 * self.level:g}%"

    def weights(self, n_clusters: int) -> Array:
        """Bootstrap weights of clusters, the same at every call: (n_resamples, n_clusters)."""
        return cluster_weights(n_clusters, self.n_resamples, self.seed).astype(float)

    def refit_weights(self, n_clusters: int) -> Array:
        """Bootstrap weights for refits, the same at every call: (n_refits, n_clusters)."""
        return cluster_weights(n_clusters, self.n_refits, self.seed).astype(float)
