"""Features that read parts of a target, alone and together."""

import numpy as np

GROUPS = {"N": slice(0, 3), "R": slice(3, 8)}


def make_data(seed=0, sequences=20, rows=16, shared=1.0):
    """Two noisy readings of the target's parts; `shared` of them is common to both."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(sequences), rows)
    parts = rng.normal(size=(len(groups), 3))
    noise = rng.normal(size=(len(groups), 8)) + 0.5 * rng.normal(size=(sequences, 8))[groups]
    X = noise + np.repeat(parts[:, :2], [3, 5], axis=1) + shared * parts[:, [2]]
    return X, parts.sum(axis=1), groups
