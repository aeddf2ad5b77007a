r"""Position effects, and their exact split into the mask channel and the residual channel.

For one head, offset and item, at position p against a reference (the latest) position:

.. math::

    T(p) = a(p) - a(\mathrm{ref}), \qquad
    M(p) = -\left(z_\mathrm{mask}(p) - z(\mathrm{ref})\right), \qquad
    R(p) = T(p) - M(p)

with :math:`a = s - z` the log attention weight and :math:`z_\mathrm{mask}(p)` the normalizer of the
late row, were its mask that of position p. All are differences within one row, in nats: adding a
constant to the scores of a query changes none of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posprobe.errors import DesignError
from posprobe.intervals import Array

__all__ = ["Array", "ChannelEffects", "position_covariance"]


def position_covariance(x: Array, y: Array, weights: Array | None = None) -> Array:
    r"""Covariance over positions of two position effects, unbiased by content noise.

    With rows centred over p, and pairs of *different* items only,

    .. math::

        V_{xy} = \frac{\langle \sum_n w_n x_n, \sum_n w_n y_n \rangle
                       - \sum_n w_n^2 \langle x_n, y_n \rangle}
                      {P \left( (\sum_n w_n)^2 - \sum_n w_n^2 \right)} .

    The plain variance of position means also contains content noise; this does not, and may be
    negative. It is never clipped.

    Parameters
    ----------
    x, y : ndarray of shape (N, P, ...)
        Items x positions x anything.
    weights : ndarray of shape (B, N), or None
        One row per weighting of the items: multinomial counts for a bootstrap, ones with a single
        zero for a jackknife. None: every item once.

    Returns
    -------
    ndarray of shape (...), or (B, ...) with weights
        In squared units of x.

    Raises
    ------
    DesignError
        With fewer than two items or two positions.

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


@dataclass(frozen=True)
class ChannelEffects:
    """Effects of position on one layer's log attention weights, item by item.

    Attributes
    ----------
    positions : ndarray of shape (P,)
        Prefix lengths, in tokens; the last is the reference.
    total, mask, residual : ndarray of shape (N, P, H, D)
        T, M and R, in nats, averaged over the rows of the window.
    sink : ndarray of shape (N, P, H, D)
        The part of R that key 0 makes by its score relative to the local mean; 0 in heads from
        which key 0 is hidden.
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
        """N, the number of resampling units."""
        return len(self.total)

    def up_to(self, position: int) -> ChannelEffects:
        """Early positions only, and the reference."""
        keep = self.positions <= position
        keep[-1] = True
        return self._with(self.positions[keep], np.s_[:, keep])

    def beyond(self, position: int) -> ChannelEffects:
        """Later positions only, the reference among them."""
        keep = self.positions > position
        return self._with(self.positions[keep], np.s_[:, keep])

    def at_offsets(self, offsets: tuple[int, ...]) -> ChannelEffects:
        """Some of the offsets only."""
        kept = [self.offsets.index(offset) for offset in offsets]
        return dataclasses.replace(self._with(self.positions, np.s_[..., kept]), offsets=offsets)

    def by_offset(self) -> ChannelEffects:
        """Every head at every offset as a head of its own: (N, P, H * D, 1)."""
        return self._with(self.positions, np.s_[:], (*self.total.shape[:2], -1, 1))

    def take(self, items: NDArray[np.intp]) -> ChannelEffects:
        """Some of the items only, by their place along the first axis."""
        return self._with(self.positions, np.s_[items])

    def mean(self) -> ChannelEffects:
        """The mean over all items, as one."""
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
        """T, M, R and S at each position, averaged over heads and offsets: (P,), or (B, P)."""
        rows = np.ones((1, self.n_items)) if weights is None else np.asarray(weights, dtype=float)
        rows = rows / rows.sum(1, keepdims=True)
        parts = {"T": self.total, "M": self.mask, "R": self.residual, "S": self.sink}
        means = {name: rows @ part.mean((2, 3)) for name, part in parts.items()}
        return {k: v[0] for k, v in means.items()} if weights is None else means

    def variances(self, weights: Array | None = None) -> dict[str, Array]:
        """V_T, V_M, V_R, C_MR and V_S per head, averaged over offsets: (H,), or (B, H)."""
        pairs = {
            "V_T": (self.total, self.total),
            "V_M": (self.mask, self.mask),
            "V_R": (self.residual, self.residual),
            "C_MR": (self.mask, self.residual),
            "V_S": (self.sink, self.sink),
        }
        return {k: position_covariance(x, y, weights).mean(-1) for k, (x, y) in pairs.items()}
