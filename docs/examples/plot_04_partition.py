"""
Divide R2 between normalizers and the residual stream
=====================================================

Both tell position. A variance partition says what each tells alone, what only it tells, and what
they share.
"""

import matplotlib.pyplot as plt

from posprobe import ActivationStore, VariancePartition
from posprobe.probes import features

store = ActivationStore("../captures/natural.h5")
X, y, groups, feature_groups = features(store, layer=3)
print({name: place.stop - place.start for name, place in feature_groups.items()})

partition = VariancePartition(feature_groups).fit(X, y, groups=groups)
table = partition.intervals("fixed_probe")
table[["quantity", "group", "estimate", "low", "high"]].round(3)

# %%
# Each group has a penalty of its own, so 4 normalizers are not drowned by 128 coordinates. Nothing
# is clipped: a negative shared part is suppression, where both together tell more than the sum of
# what they tell alone.

parts = table[table["quantity"].isin(["unique", "shared"])].iloc[::-1]
fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
errors = (parts["estimate"] - parts["low"], parts["high"] - parts["estimate"])
ax.barh(parts["quantity"] + ": " + parts["group"], parts["estimate"], xerr=errors, color="#009e73")
ax.axvline(0, color="grey", linewidth=0.8)
ax.set_xlabel("part of R2, with 95% limits over sequences")
