"""Compare variants of one checkpoint that were run on the same items.

All variants have the same weights, so they are one model. Their differences are paired over items
and generalise to other items of the same kind of text, not to other models of an architecture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from posprobe.architectures.contrasts import Contrast, adjust
from posprobe.architectures.result import ContrastResult
from posprobe.errors import DesignError
from posprobe.intervals import Array, Interval, bootstrap_limits, standard_error

__all__ = ["paired_contrasts"]


def paired_contrasts(
    estimate: Array,
    replicates: Array,
    names: Sequence[str],
    contrasts: Sequence[Contrast],
    *,
    n: int,
    level: float = 0.95,
) -> tuple[ContrastResult, ...]:
    """Estimate contrasts between variants from bootstrap samples of their common items.

    Least squares reduces each variant to its mean over layers and its slope over depth (0 for the
    first layer, 1 for the last). A contrast is a weighted sum of these. Limits and p-values use
    t(n - 1) and the bootstrap standard error. All variants share the resampled items, so effects of
    items that are common to all variants cancel.

    Parameters
    ----------
    estimate : ndarray of shape (V, L)
        The quantity to compare, for each of V variants and L layers.
    replicates : ndarray of shape (B, V, L)
        The quantity in B bootstrap samples of items, with the same weights for all variants.
    names : sequence of str
        Names of the V variants.
    contrasts : sequence of Contrast
        Contrasts between variants. Those on the slope are left out if there is only one layer.
    n : int
        Number of items.
    level : float
        Nominal coverage of each interval, not adjusted for the other contrasts.

    Returns
    -------
    tuple of ContrastResult
        Intervals in the unit of the quantity, unbounded if all replicates are equal. P-values are
        adjusted over all estimated contrasts. There is no mixed model.

    Raises
    ------
    DesignError
        If shapes do not match, or a contrast names a variant that is not there.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> items = rng.normal(size=(20, 1, 1)) + np.array([[1.0, 1.0], [3.0, 5.0]])
    >>> items = items + 0.1 * rng.normal(size=items.shape)
    >>> draws = rng.multinomial(20, [1 / 20] * 20, size=500) / 20
    >>> replicates = np.tensordot(draws, items, 1)
    >>> (found,) = paired_contrasts(
    ...     items.mean(0), replicates, ["standard", "window"],
    ...     [Contrast("window - standard", "intercept", {"standard": -1, "window": 1})], n=20,
    ... )
    >>> bool(2.9 < found.interval.low < 3 < found.interval.high < 3.1)
    True
    """
    if estimate.shape != replicates.shape[1:] or len(names) != len(estimate):
        raise DesignError(
            f"{len(names)} variants came with values of shape {estimate.shape} and replicates of "
            f"shape {replicates.shape}: give (V, L) and (B, V, L)"
        )
    design = _responses(estimate.shape[1])
    asked = [one for one in contrasts if one.response in design]
    found = [
        _estimate(one, estimate @ design[one.response], replicates @ design[one.response],
                  one.vector(names), n, level)
        for one in asked
    ]  # fmt: skip
    p_values = [p for _, p in found]
    return tuple(
        ContrastResult(one, interval, p, holm, bh, None)
        for one, (interval, p), holm, bh in zip(
            asked, found, adjust(p_values), adjust(p_values, "fdr_bh"), strict=True
        )
    )


def _responses(n_layers: int) -> dict[str, Array]:
    """Return the weights over layers that give the mean and the slope over depth."""
    if n_layers == 1:
        return {"intercept": np.ones(1)}
    z = np.linspace(0, 1, n_layers) - 0.5
    return {"intercept": np.full(n_layers, 1 / n_layers), "slope": z / (z @ z)}


def _estimate(
    contrast: Contrast, values: Array, draws: Array, weights: Array, n: int, level: float
) -> tuple[Interval, float]:
    estimate, resampled = float(values @ weights), draws @ weights
    size = max(float(np.abs(resampled).max()), float(np.abs(values * weights).max()))
    error = float(standard_error(resampled, n))
    if error <= 1e-12 * size:
        none = Interval(estimate, None, None, level, "the same in all items", contrast.name, n)
        return none, float("nan")
    low, high = (float(v) for v in bootstrap_limits(resampled, estimate, n=n, level=level))
    method = f"bootstrap of items, t({n - 1})"
    interval = Interval(estimate, low, high, level, method, contrast.name, n)
    return interval, 2 * float(stats.t.sf(abs(estimate) / error, n - 1))
