r"""Attention that returns its log-normalizer, without ever forming a T x T array.

Let :math:`s_{ij}` be the score of query :math:`i` and key :math:`j` that enters the softmax (after
rotary embedding, QK-norm, scaling and soft-cap), and :math:`A(i)` the set of keys that the query
may attend to. The normalizer and the attention weights are

.. math:: z_i = \log \sum_{j \in A(i)} e^{s_{ij}}, \qquad \log \alpha_{ij} = s_{ij} - z_i .

A blockwise online softmax computes the output and :math:`z` on every device. It is the reference
for the fused kernels of `posprobe.models.kernels`, which return the log-sum-exp and are faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BLOCK", "Scoring", "Visibility", "attend_blockwise"]

BLOCK = 256


@dataclass(frozen=True)
class Visibility:
    """The set A(i) of keys that query i may attend to.

    Parameters
    ----------
    causal : bool, default=True
        Whether keys after the query are hidden.
    window : int or None, default=None
        Keys at a distance of ``window`` tokens or more are hidden. None means no limit.
    """

    causal: bool = True
    window: int | None = None

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which keys each query sees.

        Parameters
        ----------
        queries : Tensor of int, shape (m,)
            Positions of the queries.
        keys : Tensor of int, shape (n,)
            Positions of the keys.

        Returns
        -------
        Tensor of bool, shape (m, n)
        """
        distance = queries[:, None] - keys[None, :]
        visible = torch.ones_like(distance, dtype=torch.bool)
        if self.causal:
            visible &= distance >= 0
        if self.window is not None:
            visible &= distance.abs() < self.window
        return visible

    def key_range(self, first: int, last: int, n_keys: int) -> tuple[int, int]:
        """Return start and stop of the keys that at least one query in [first, last) sees."""
        low = 0 if self.window is None else max(0, first - self.window + 1)
        reach = n_keys if self.window is None else min(n_keys, last + self.window - 1)
        return low, min(last, n_keys) if self.causal else reach


@dataclass(frozen=True)
class Scoring:
    """How a layer turns queries and keys into the scores that enter the softmax.

    Parameters
    ----------
    scaling : float
        Factor on the inner product.
    softcap : float or None, default=None
        Bound of the scores, which become ``softcap * tanh(s / softcap)``. None means no bound.
    sink_logit : Tensor of shape (head,), or None, default=None
        A learned logit per head, in nats, that is added to the softmax denominator only.
    """

    scaling: float
    softcap: float | None = None
    sink_logit: Tensor | None = None

    def matrix(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the scores of all queries with all keys.

        Parameters
        ----------
        query : Tensor, shape (batch, head, m, d)
            Queries.
        key : Tensor, shape (batch, key-value head, n, d)
            Keys.

        Returns
        -------
        Tensor, shape (batch, head, m, n)
            Scores in nats, at least float32.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        # put the heads of a group next to each other, so their keys are read once and not copied
        grouped = query.to(wide).unflatten(1, (key.shape[1], -1)).flatten(2, 3)
        product = grouped @ key.to(wide).transpose(-1, -2)
        shape = *query.shape[:3], key.shape[2]
        return self._cap(product.view(shape).mul_(self.scaling))

    def paired(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the score of each query i with key i.

        Parameters
        ----------
        query : Tensor, shape (batch, head, m, d)
            Queries.
        key : Tensor, shape (batch, key-value head, m, d)
            Keys.

        Returns
        -------
        Tensor, shape (batch, head, m)
            Scores in nats, at least float32.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        grouped = query.to(wide).unflatten(1, (key.shape[1], -1))
        product = (grouped * key.to(wide).unsqueeze(2)).sum(-1)
        return self._cap(product.flatten(1, 2) * self.scaling)

    def of_heads(self, heads: list[int]) -> Scoring:
        """Return the scoring of a selection of heads."""
        logit = None if self.sink_logit is None else self.sink_logit[heads]
        return Scoring(self.scaling, self.softcap, logit)

    def with_sink_logit(self, normalizer: Tensor) -> Tensor:
        """Add the learned logit to the sum in a normalizer of shape (batch, head, ...)."""
        if self.sink_logit is None:
            return normalizer
        logit = self.sink_logit.to(normalizer).view(1, -1, *[1] * (normalizer.ndim - 2))
        return torch.logaddexp(normalizer, logit)

    def _cap(self, scores: Tensor) -> Tensor:
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def attend_blockwise(
    query: Tensor, key: Tensor, value: Tensor, visibility: Visibility, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Compute `posprobe.models.kernels.attend` by an online softmax over blocks of keys.

    A learned sink logit is left out of the denominator.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    output = query.new_empty(query.shape[:-1] + value.shape[-1:])
    normalizer = query.new_empty(query.shape[:-1], dtype=wide)
    index = torch.arange(max(n_queries, n_keys), device=query.device)
    for first in range(0, n_queries, BLOCK):
        rows = slice(first, min(first + BLOCK, n_queries))
        low, high = visibility.key_range(rows.start, rows.stop, n_keys)
        top = query.new_full(query[:, :, rows].shape[:-1], -torch.inf, dtype=wide)
        total = torch.zeros_like(top)
        weighted = top.new_zeros((*top.shape, value.shape[-1]))
        for start in range(low, high, BLOCK):
            columns = slice(start, min(start + BLOCK, high))
            scores = scoring.matrix(query[:, :, rows], key[:, :, columns])
            scores.masked_fill_(~visibility.mask(index[rows], index[columns]), -torch.inf)
            new_top = torch.maximum(top, scores.amax(-1))
            # new_top is finite: blocks of keys are as long as blocks of queries, so every row sees
            # a key in its first block
            weights = (scores - new_top.unsqueeze(-1)).exp_()
            fade = (top - new_top).exp()
            total = total * fade + weights.sum(-1)
            values = value[:, :, columns].to(wide).unsqueeze(2)
            block = (weights.unflatten(1, (key.shape[1], -1)) @ values).flatten(1, 2)
            weighted = weighted * fade.unsqueeze(-1) + block
            top = new_top
        output[:, :, rows] = (weighted / total.unsqueeze(-1)).to(output.dtype)
        normalizer[:, :, rows] = top + total.log()
    return output, normalizer
