r"""Position effects, and their exact split into the mask channel and the residual channel.

For one head, offset and item, at position p relative to the latest position (the reference):

.. math::

    T(p) = a(p) - a(\mathrm{ref}), \qquad
    M(p) = -\left(z_\mathrm{mask}(p) - z(\mathrm{ref})\right), \qquad
    R(p) = T(p) - M(p)

Here :math:`a = s - z` is the log attention weight, and :math:`z_\mathrm{mask}(p)` is the normalizer
that the late row would have under the mask of position p. All three are in nats. They do not change
if a constant is added to all scores of a query.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posprobe.errors import DesignError, Telling
from posprobe.intervals import Array

__all__ = ["Array", "ChannelEffects", "pair_products", "position_covariance"]


def position_covariance(x: Array, y: Array, weights: Array | None = None) -> Array:
    r"""Estimate the covariance over positions of two mean position effects, without bias.

    Each item is centred over positions. Only products of *different* items enter:

    .. math::

        V_{xy} = \frac{\langle \sum_n w_n x_n, \sum_n w_n y_n \rangle
                       - \sum_n w_n^2 \langle x_n, y_n \rangle}
                      {P \left( (\sum_n w_n)^2 - \sum_n w_n^2 \right)} .

    The plain variance of position means also contains noise from the content of the items. This
    estimate does not. It may be negative and is not clipped.

    Parameters
    ----------
    x, y : ndarray of shape (N, P, ...)
        The two effects, for N items at P positions.
    weights : ndarray of shape (B, N) or None
        Each row is one weighting of the items: multinomial counts for a bootstrap sample, ones
        with a single zero for the jackknife. By default every item counts once.

    Returns
    -------
    ndarray of shape (...), or (B, ...) with weights
        In the unit of x times that of y, here squared nats.

    Raises
    ------
    DesignError
        If there are fewer than two items or two positions.

    Examples
    --------
    >>> import numpy as np
    >>> from posprobe.channels.effects import position_covariance
    >>> effect = np.array([-1.0, 0.0, 1.0])
    >>> noise = np.random.default_rng(0).normal(size=(4000, 3))
    >>> bool(abs(position_covariance(effect + noise, effect + noise) - 2 / 3) < 0.1)
    True
    """
    n_items, n_positions = x.shape[:2]
    if n_items < 2 or n_positions < 2:
        raise DesignError(
            f"a position effect needs at least 2 items and 2 positions, not {n_items} and "
            f"{n_positions}; capture with a larger --n"
        )
    x = x - x.mean(1, keepdims=True)
    y = y - y.mean(1, keepdims=True)
    rows = np.ones((1, n_items)) if weights is None else np.asarray(weights, dtype=float)
    sums = np.tensordot(rows, x, 1) * np.tensordot(rows, y, 1)
    same = np.tensordot(rows**2, (x * y).sum(1), 1)
    pairs = rows.sum(1) ** 2 - (rows**2).sum(1)
    value = (sums.sum(1) - same) / (n_positions * pairs.reshape(-1, *[1] * (x.ndim - 2)))
    return value[0] if weights is None else value


def pair_products(x: Array, y: Array) -> Array:
    r"""Multiply two effects of every pair of items, averaged over positions and offsets.

    .. math:: k_{nm} = \frac{1}{2 P} \left(\langle x_n, y_m \rangle
        + \langle x_m, y_n \rangle\right), \qquad n \ne m

    with effects centred over positions; `position_covariance` averages these over all pairs.

    Parameters
    ----------
    x, y : ndarray of shape (N, P, H, D)
        The two effects.

    Returns
    -------
    ndarray of shape (H, N, N)
        In the unit of x times that of y. The diagonal is 0.
    """
    n_items, n_positions, n_heads, n_offsets = x.shape
    size = n_positions * n_offsets
    x, y = (
        np.moveaxis(part - part.mean(1, keepdims=True), 2, 0).reshape(n_heads, n_items, size)
        for part in (x, y)
    )
    product = x @ y.swapaxes(1, 2) / size
    product[:, range(n_items), range(n_items)] = 0
    return (product + product.swapaxes(1, 2)) / 2


@dataclass(frozen=True, repr=False)
class ChannelEffects(Telling):
    """Effects of position on the log attention weights of one layer.

    There are N items, P positions, H heads and D offsets.

    Attributes
    ----------
    positions : ndarray of shape (P,)
        Prefix lengths, in tokens; the last is the reference.
    total, mask, residual : ndarray of shape (N, P, H, D)
        T, M and R in nats, averaged over the rows of the window.
    sink : ndarray of shape (N, P, H, D)
        S in nats: the part of R due to the score of key 0 relative to the mean score at the fixed
        offsets. It is 0 where a head does not see key 0.
    offsets : tuple of int
        The D offsets, in tokens.
    """

    positions: NDArray[np.int64]
    total: Array
    mask: Array
    residual: Array
    sink: Array
    offsets: tuple[int, ...] = ()

    @property
    def n_items(self) -> int:
        """The number N of resampling units."""
        return len(self.total)

    def _line(self) -> str:
        return (
            f"T, M, R and S (nats) of {self.n_items} items at positions "
            f"{', '.join(map(str, self.positions))}; {self.total.shape[2]} heads, offsets "
            f"{', '.join(map(str, self.offsets))}"
        )

    def up_to(self, position: int) -> ChannelEffects:
        """Keep the positions up to this one, in tokens, and the reference."""
        keep = self.positions <= position
        keep[-1] = True
        return self._with(self.positions[keep], np.s_[:, keep])

    def beyond(self, position: int) -> ChannelEffects:
        """Keep the positions beyond this one, in tokens; they include the reference."""
        keep = self.positions > position
        return self._with(self.positions[keep], np.s_[:, keep])

    def at_offsets(self, offsets: tuple[int, ...]) -> ChannelEffects:
        """Keep these offsets, in this order."""
        kept = [self.offsets.index(offset) for offset in offsets]
        return dataclasses.replace(self._with(self.positions, np.s_[..., kept]), offsets=offsets)

    def by_offset(self) -> ChannelEffects:
        """Treat each pair of head and offset as a head: arrays of shape (N, P, H * D, 1)."""
        return self._with(self.positions, np.s_[:], (*self.total.shape[:2], -1, 1))

    def take(self, items: NDArray[np.intp]) -> ChannelEffects:
        """Keep these items, given by their indices along the first axis."""
        return self._with(self.positions, np.s_[items])

    def mean(self) -> ChannelEffects:
        """Average over items; the result has one item."""
        total, mask, residual, sink = (
            part.mean(0, keepdims=True)
            for part in (self.total, self.mask, self.residual, self.sink)
        )
        return ChannelEffects(self.positions, total, mask, residual, sink, self.offsets)

    def _with(
        self, positions: NDArray[np.int64], part: Any, shape: tuple[int, ...] | None = None
    ) -> ChannelEffects:
        total, mask, residual, sink = (
            p[part] if shape is None else p.reshape(shape)
            for p in (self.total, self.mask, self.residual, self.sink)
        )
        return ChannelEffects(positions, total, mask, residual, sink, self.offsets)

    def profile(self, weights: Array | None = None) -> dict[str, Array]:
        """Average T, M, R and S over items, heads and offsets.

        Parameters
        ----------
        weights : ndarray of shape (B, N) or None
            Weightings of the items, as in `position_covariance`.

        Returns
        -------
        dict of str to ndarray of shape (P,), or (B, P) with weights
            The mean effect at each position, in nats.
        """
        rows = np.ones((1, self.n_items)) if weights is None else np.asarray(weights, dtype=float)
        rows = rows / rows.sum(1, keepdims=True)
        parts = {"T": self.total, "M": self.mask, "R": self.residual, "S": self.sink}
        means = {name: rows @ part.mean((2, 3)) for name, part in parts.items()}
        return {k: v[0] for k, v in means.items()} if weights is None else means

    def products(self) -> dict[str, Array]:
        """Multiply the effects of every pair of items by `pair_products`.

        Returns
        -------
        dict of str to ndarray of shape (H, N, N)
            V_T, V_M, V_R, C_MR and V_S, in squared nats. The diagonal is 0.
        """
        return {name: pair_products(x, y) for name, (x, y) in self._pairs().items()}

    def _pairs(self) -> dict[str, tuple[Array, Array]]:
        """The two effects of which each variance is the covariance."""
        return {
            "V_T": (self.total, self.total),
            "V_M": (self.mask, self.mask),
            "V_R": (self.residual, self.residual),
            "C_MR": (self.mask, self.residual),
            "V_S": (self.sink, self.sink),
        }

    def variances(self, weights: Array | None = None) -> dict[str, Array]:
        """Estimate V_T, V_M, V_R, C_MR and V_S of each head, averaged over offsets.

        Parameters
        ----------
        weights : ndarray of shape (B, N) or None
            Weightings of the items, as in `position_covariance`.

        Returns
        -------
        dict of str to ndarray of shape (H,), or (B, H) with weights
            In squared nats.
        """
        return {
            name: position_covariance(x, y, weights).mean(-1)
            for name, (x, y) in self._pairs().items()
        }
