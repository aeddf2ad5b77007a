"""Compare how precisely the shifted and the natural design measure position effects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from posprobe.channels import channel_effects
from posprobe.errors import DesignError
from posprobe.intervals import Array, Inference, bootstrap_limits, cluster_weights
from posprobe.store import ActivationStore

__all__ = ["precision_table"]

SCOPES = {
    "each head": "root mean square over layers, heads and offsets",
    "mean over heads": "of the mean over layers, heads and offsets",
}


def precision_table(
    natural: ActivationStore, shifted: ActivationStore, *, inference: Inference = Inference()
) -> pd.DataFrame:
    r"""Compare standard errors of T(p) in the natural and the shifted design, at equal n.

    .. math:: SE(p) = \sqrt{\mathrm{Var}_n\, T_n(p) / n}

    Both use their first n items, where n is the smaller number of items. In the natural design the
    content differs between positions of a sequence; in the shifted design it is the same.

    Parameters
    ----------
    natural, shifted : ActivationStore
        Captures with the same window and offsets. They are compared at the positions that both
        contain.
    inference : Inference
        Level, number of bootstrap samples and seed. Intervals are bootstrap t intervals of the log
        ratio, for which the items of both designs are drawn independently.

    Returns
    -------
    pandas.DataFrame
        position (tokens), scope ("each head" or "mean over heads"), se_natural, se_shifted (nats),
        ratio (natural to shifted), low, high, n (items of each design).

    Raises
    ------
    DesignError
        If windows or offsets differ, or the files have no position in common but the reference.
    """
    same = natural.window == shifted.window and natural.offsets == shifted.offsets
    n = min(store.n_items for store in (natural, shifted))
    positions = np.intersect1d(natural.prefixes[:-1], shifted.prefixes[:-1])
    if not same or not len(positions):
        raise DesignError(
            f"{natural.path.name} and {shifted.path.name} cannot be compared in precision; capture "
            "both with the same --length and --window"
        )
    rng = np.random.default_rng(inference.seed)
    weights = [
        np.vstack([np.ones(n), cluster_weights(n, inference.n_resamples, rng)]) for _ in range(2)
    ]
    errors = [
        _standard_errors(store, positions, n, own)
        for store, own in zip((natural, shifted), weights, strict=True)
    ]
    rows = []
    for scope in SCOPES:
        log_ratio = np.log(errors[0][scope] / errors[1][scope])
        limits = bootstrap_limits(log_ratio[1:], log_ratio[0], n=n, level=inference.level)
        for p, position in enumerate(positions):
            low, high = limits[0][p], limits[1][p]
            rows.append(
                {
                    "position": int(position),
                    "scope": scope,
                    "se_natural": errors[0][scope][0, p],
                    "se_shifted": errors[1][scope][0, p],
                    "ratio": np.exp(log_ratio[0, p]),
                    "low": np.exp(low),
                    "high": np.exp(high),
                    "n": n,
                }
            )
    return pd.DataFrame(rows)


def _standard_errors(
    store: ActivationStore, positions: NDArray[np.int64], n: int, weights: Array
) -> dict[str, Array]:
    """Compute standard errors under each weighting of the items: (weighting, position)."""
    columns = np.flatnonzero(np.isin(store.prefixes, positions))
    each = np.zeros((len(weights), len(columns)))
    overall = np.zeros((n, len(columns)))
    count = 0
    for total in _totals(store, columns, n):
        flat = total.reshape(n, len(columns), -1)
        each += _variance(flat, weights).sum(-1)
        overall += flat.mean(-1)
        count += flat.shape[-1]
    mean = _variance(overall[..., None] / store.n_layers, weights)[..., 0]
    return {"each head": np.sqrt(each / count / n), "mean over heads": np.sqrt(mean / n)}


def _totals(store: ActivationStore, columns: NDArray[np.intp], n: int) -> Iterator[Array]:
    for layer in range(store.n_layers):
        yield channel_effects(store, layer).total[:n][:, columns]


def _variance(values: Array, weights: Array) -> Array:
    """Compute the unbiased variance over items under each weighting: (weighting, ...)."""
    n = len(values)
    values = values - values.mean(0)
    mean = np.tensordot(weights, values, 1) / n
    square = np.tensordot(weights, values**2, 1) / n
    return (square - mean**2) * n / (n - 1)
