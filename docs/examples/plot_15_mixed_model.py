"""
Test architectures with models as the sample
============================================

Layers of one model are no independent draws of its architecture: models are.
``compare_architectures`` takes any table of values by model and layer, and tests architectures by a
mixed model with fixed layers and random models. A two-stage test stands beside it as its check.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import posprobe

rng = np.random.default_rng(0)
rows = [
    {
        "architecture": architecture,
        "model": f"{architecture}-{seed}",
        "layer": layer,
        "depth": layer / 5,
        "value": effect + own + 0.1 * layer + rng.normal(scale=0.1),
    }
    for architecture, effect in (("ntk", 0.0), ("rope", 0.3), ("window", 0.9))
    for seed in range(4)
    for own in [rng.normal(scale=0.3)]
    for layer in range(6)
]
table = pd.DataFrame(rows)
result = posprobe.compare_architectures(table)
print(result.sentence())
result.table("tests").round(4)

# %%
# Means of architectures have intervals over models, so they are about the next model.

fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
for architecture, mean in result.means.items():
    own = [model.intercept for model in result.models if model.architecture == architecture]
    ax.plot(own, [architecture] * len(own), "o", color="grey", alpha=0.6)
    ax.plot([mean.low, mean.high], [architecture] * 2, color="#009e73", linewidth=3)
ax.set_xlabel("value at mean depth: models, and 95% limits over models")

# %%
# Any other mixed model has a formula, as in lme4. Tests have Satterthwaite's degrees of freedom.

fit = posprobe.fit_mixed("value ~ architecture + layer + (1 | model)", table)
print(fit.status)
fit.fixed().round(3)
