"""
Use a probe inside scikit-learn's own tools
===========================================

In a search or a cross-validation, ``groups`` reach the probe's inner folds only if you route them.
Otherwise rows of one sequence are on both sides of a fold, and its score is too good.
"""

import matplotlib.pyplot as plt
import numpy as np
import sklearn
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate

from posprobe import ActivationStore, PositionProbe
from posprobe.probes import features

store = ActivationStore("../captures/natural.h5")
X, y, groups, _ = features(store, layer=3, which="normalizer")

with sklearn.config_context(enable_metadata_routing=True):
    probe = PositionProbe().set_fit_request(groups=True)
    targets = {"target": ["position", "log_position"]}
    search = GridSearchCV(probe, targets, cv=GroupKFold(4)).fit(X, y, groups=groups)
    scores = cross_validate(probe, X, y, cv=GroupKFold(4), params={"groups": groups})

print("chosen:", search.best_params_)
print("R2 of the outer folds:", scores["test_score"].round(2))
print("sequences that the chosen probe saw:", search.best_estimator_.n_sequences_)

# %%
# The last line is how you see that routing works: 40 sequences, as in the file. A number of rows
# there would mean that each row counted as a sequence.

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.bar(np.arange(1, 5), scores["test_score"], color="#0072b2")
ax.set(xlabel="outer fold", ylabel="R2", xticks=range(1, 5))
