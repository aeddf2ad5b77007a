"""
Run the whole study on one model
================================

``audit`` captures all designs, analyzes them and writes the report. This is ``posprobe audit`` in
Python, on a small model with few windows and few refits.
"""

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import posprobe

folder = Path(tempfile.mkdtemp())
small = {"n": 10, "length": 64, "window": 16, "replacements": ("mean",)}
page = posprobe.audit("zoo/rope-0", folder, **small, n_resamples=300, n_refits=20, progress=False)
sorted(path.name for path in folder.iterdir())

# %%
# ``report.html`` contains all words and figures. ``claims.json`` has the claims of the study, each
# with its estimate, its interval, its protocol and its verdict.

claims = pd.DataFrame(json.loads((folder / "claims.json").read_text()))
verdicts = claims["verdict"].value_counts()
fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ax.barh(verdicts.index, verdicts, color="#0072b2")
ax.set_xlabel("claims")
ax.invert_yaxis()

# %%

claims[["id", "estimate", "ci_low", "ci_high", "verdict"]].head(10)
