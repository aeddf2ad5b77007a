"""
Compare two captures
====================

The same checkpoint with its own attention, and with a sliding window. The weights are the same, so
the two are compared window by window, which says what attention does and tests no architecture.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import posprobe

folder = Path(tempfile.mkdtemp())
for variant in ("standard", "window(24)"):
    model = posprobe.load_model("zoo/rope-0", variant=variant)
    name = variant.partition("(")[0]
    posprobe.capture(
        model, folder / f"{name}.h5", design="shifted", n=16, length=64, window=16, progress=False
    ).close()

page = posprobe.compare(sorted(folder.glob("*.h5")), folder / "report", progress=False)
sorted(path.name for path in page.parent.iterdir())

# %%
# ``report.html`` is the page to send. Its tables are CSV files. Differences are paired: both
# variants get the same bootstrap weights for the same windows.

differences = pd.read_csv(page.parent / "tables" / "differences.csv")
means = differences.query("response == 'intercept'").set_index("value")
means[["contrast", "estimate", "low", "high"]].round(4)

# %%
# The size of each difference, with 95% limits over windows.

chosen = means.loc[["V_T", "V_M", "V_R"]]
errors = (chosen["estimate"] - chosen["low"], chosen["high"] - chosen["estimate"])
fig, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
ax.errorbar(chosen["estimate"], chosen.index, xerr=errors, fmt="o", color="black")
ax.axvline(0, color="grey", linewidth=0.8)
ax.set_xlabel("window(24) less standard (squared nats)")
