"""
Compare two captures
====================

The same checkpoint with its own attention, and with a sliding window. The weights are the same, so the two are compared
window by window, which says what attention does and tests no architecture.
"""

import tempfile
from pathlib import Path

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
# ``report.html`` is the page to send. Its tables are CSV files. Differences are paired: both variants get the same
# bootstrap weights for the same windows.

differences = pd.read_csv(page.parent / "tables" / "differences.csv")
differences.head(8)
