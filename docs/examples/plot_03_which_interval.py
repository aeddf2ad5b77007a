"""
Choose an interval, and see what a wrong one does
=================================================

One R2, three intervals. Two answer different questions, and the third counts tokens as if they were
independent.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from posprobe import ActivationStore, PositionProbe
from posprobe.probes import features

store = ActivationStore("../captures/natural.h5")
X, y, groups, _ = features(store, layer=3, which="normalizer")
probe = PositionProbe().fit(X, y, groups=groups)

fixed = probe.interval(estimand="fixed_probe", random_state=0)
refit = probe.interval(estimand="refit", n_resamples=100, random_state=0)
for interval in (fixed, refit):
    print(
        f"{interval.estimand:12} {interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    )

# %%
# ``fixed_probe`` is about this probe on new sequences. ``refit`` is about the average probe that as
# many sequences give, so every bootstrap sample is fitted anew.
#
# For comparison, a bootstrap over tokens. Errors of neighbouring tokens are alike, so it believes
# to have more data than there are. Do not use it.

predicted = cross_val_predict(LinearRegression(), X, y, groups=groups, cv=GroupKFold(5))
errors, total = (y - predicted) ** 2, (y - y.mean()) ** 2
draws = np.random.default_rng(0).integers(len(y), size=(1000, len(y)))
low, high = np.quantile(1 - errors[draws].sum(axis=1) / total[draws].sum(axis=1), (0.025, 0.975))

fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
rows = [
    ("over tokens (wrong)", low, high, "grey"),
    ("refit", refit.low, refit.high, "#0072b2"),
    ("fixed_probe", fixed.low, fixed.high, "#d55e00"),
]
for place, (_, start, end, colour) in enumerate(rows):
    ax.plot([start, end], [place, place], color=colour, linewidth=4)
ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
ax.set(xlabel="R2 of a probe that reads the normalizers", ylim=(-0.6, len(rows) - 0.4))
