"""
Probe one layer for position
============================

A linear probe reads absolute position from the residual stream. It is an estimator of scikit-learn
whose ``fit`` takes ``groups``, the sequence of each row: sequences are the unit of folds and of
intervals.
"""

import matplotlib.pyplot as plt

from posprobe import ActivationStore, PositionProbe
from posprobe.probes import features

store = ActivationStore("../captures/natural.h5")
X, y, groups, feature_groups = features(store, layer=3, which="residual")
print(X.shape, "rows and features of", len(set(groups)), "sequences")

probe = PositionProbe().fit(X, y, groups=groups)
print(f"R2 {probe.r2_:.2f}, off by {probe.mae_:.1f} tokens (a guess: {probe.mae_guess_:.1f})")

# %%
# Both are out of fold: each sequence was predicted by a probe that had not seen it.
# ``probe.score(X, y)`` is in sample and larger.

print(f"in sample: {probe.score(X, y):.2f}")

# %%
# The interval of this probe's R2 on new sequences. With ``fixed_probe`` the probe is the one at
# hand; see :doc:`/quoting` for the other choice.

print(probe.interval(estimand="fixed_probe"))

# %%
# Some sequences are easier to read than others.

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.hist(probe.sequence_scores_, bins=15, color="#d55e00")
ax.axvline(probe.r2_, color="black", label="their mean: R2 of the probe")
ax.set(xlabel="score of a sequence", ylabel="sequences")
ax.legend()
