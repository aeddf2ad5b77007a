"""
Fit probes while a capture runs, and keep no activations
========================================================

The residual stream is most of a file. A consumer sees it as it is computed, and gathers what a
ridge regression needs.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import posprobe
from posprobe.probes import GramAccumulator

folder = Path(tempfile.mkdtemp())
model = posprobe.load_model("zoo/rope-0")
grams = GramAccumulator("residual", layers=[1, 2, 3], n_groups=5)
posprobe.capture(
    model,
    folder / "tokens.h5",
    n=60,
    length=48,
    window=16,
    quantities=(),
    consumers=[grams],
    progress=False,
).close()
print(f"file: {(folder / 'tokens.h5').stat().st_size / 1e3:.0f} kB")

# %%
# One pass gave the sufficient statistics of five folds at three layers.

scores = {layer: posprobe.PositionProbe().fit_gram(gram).r2_ for layer, gram in grams.grams.items()}
print({layer: round(score, 2) for layer, score in scores.items()})

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.bar(list(scores), list(scores.values()), color="#d55e00")
ax.set(xlabel="layer", ylabel="R2 of the residual stream", xticks=list(scores))
