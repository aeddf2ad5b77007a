"""Rows that are correlated within sequences."""

import numpy as np

ALPHAS = np.logspace(-1, 4, 12)
MANY = np.logspace(-1, 4, 41)


def make_data(seed=0, sequences=20, rows=16, p=8, signal=3):
    """Rows correlated within sequences; the first features carry the target."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(sequences), rows)
    X = 5 + rng.normal(size=(len(groups), p)) + rng.normal(size=(sequences, p))[groups]
    noise = 2 * rng.normal(size=len(groups)) + rng.normal(size=sequences)[groups]
    return X, X[:, :signal].sum(axis=1) + noise, groups


def make_positions(seed=0, sequences=20, rows=32, p=6, noise=0.2):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(1.0, rows + 1), sequences)
    X = np.log(y)[:, None] + noise * rng.normal(size=(len(y), p))
    X += noise * rng.normal(size=(sequences, p)).repeat(rows, axis=0)
    return X, y, np.repeat(np.arange(sequences), rows)
