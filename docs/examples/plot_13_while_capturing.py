"""
Fit probes while a capture runs, and keep no activations
========================================================

The residual stream is most of a file. A consumer sees it as it is computed, and gathers what a ridge regression needs.
"""

import tempfile
from pathlib import Path

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

for layer, gram in grams.grams.items():
    probe = posprobe.PositionProbe().fit_gram(gram)
    print(f"layer {layer}: R2 {probe.r2_:.2f}")
