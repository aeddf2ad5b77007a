"""
Bring your own regressor, with controls
=======================================

Any regressor of scikit-learn can read position. Two controls say what its score is worth: positions
permuted the same way in all sequences show what can be learnt by heart, and positions shifted by
another amount in each sequence show the score at chance.
"""

import matplotlib.pyplot as plt
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from posprobe import ActivationStore, PositionProbe
from posprobe.probes import features, with_controls

store = ActivationStore("../captures/natural.h5")
X, y, groups, _ = features(store, layer=3, which="residual")

neighbours = make_pipeline(StandardScaler(), KNeighborsRegressor(n_neighbors=10))
tables = {
    "ridge": with_controls(PositionProbe(), X, y, groups),
    "neighbours": with_controls(neighbours, X, y, groups),
}
tables["ridge"].round(3)

# %%
# The pipeline is scored on the same rows, in folds of sequences. ``low`` and ``high`` are the 95%
# limits of R2 over sequences, for both.

tables["neighbours"].round(3)

# %%

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for place, (name, table) in enumerate(tables.items()):
    heights = table["r2"].to_numpy()
    ax.bar([place * 0.4 + x for x in range(3)], heights, width=0.35, label=name)
ax.set_xticks([0.2, 1.2, 2.2], tables["ridge"]["control"])
ax.axhline(0, color="grey", linewidth=0.8)
ax.set_ylabel("R2, out of fold")
ax.legend()
