"""
Capture a model, interrupt it, and go on
========================================

From a model to a file. A capture that is killed can be resumed, and gives the same bytes as one
that was not.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import posprobe

folder = Path(tempfile.mkdtemp())
model = posprobe.load_model("zoo/rope-0")
print(model)

# %%
# ``load_model`` has proved that the attention it will observe is the model's own. A capture draws
# sequences from a text and runs them through it.

design = {"n": 12, "length": 48, "window": 16, "batch_tokens": 96, "text": "french"}
whole = posprobe.capture(model, folder / "whole.h5", progress=False, **design)
print(whole.header.n_sequences, "sequences,", (folder / "whole.h5").stat().st_size, "bytes")


# %%
# Now the same, interrupted. A consumer receives every quantity as it is computed; this one acts as
# Ctrl-C would, in the fourth batch.


class Interrupts:
    """Stops a capture after some sequences."""

    quantities = ("normalizer",)

    def begin(self, header, index):
        """Nothing to prepare."""

    def consume(self, quantity, layer, sequences, values):
        """Stop when sequence 6 comes."""
        if sequences.start >= 6:
            raise KeyboardInterrupt


try:
    posprobe.capture(model, folder / "cut.h5", progress=False, consumers=[Interrupts()], **design)
except KeyboardInterrupt as stopped:
    print("interrupted:", stopped.__notes__[0].replace(f"{folder}/", ""))
print(sorted(path.name for path in folder.iterdir()))

# %%

resumed = posprobe.capture(model, folder / "cut.h5", progress=False, resume=True, **design)
print("same bytes:", (folder / "cut.h5").read_bytes() == (folder / "whole.h5").read_bytes())

# %%
# What is in it: most of a file is the residual stream, which ``residual_layers`` and
# ``residual_positions`` restrict.

sizes = {row["name"]: row["bytes"] / 1e3 for row in whole.summary()["rows"] if "bytes" in row}
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.barh(list(sizes), list(sizes.values()), color="#d55e00")
ax.set_xlabel("kB")
ax.invert_yaxis()
