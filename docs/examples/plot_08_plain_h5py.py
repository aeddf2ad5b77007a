"""
Read a file without posprobe
============================

A capture is plain HDF5, so any program can read it. This page uses h5py alone.
"""

import json

import h5py
import matplotlib.pyplot as plt
import numpy as np

file = h5py.File("../captures/shifted.h5")
for name, data in file.items():
    means = data.attrs.get("long_name", b"").decode()
    print(f"{name:20} {data.dtype!s:8} {data.shape!s:20} {means[:60]}")

# %%
# Root attributes say what the file is. Structured values are JSON. Each data set says what it
# means.

print(file.attrs["format"].decode(), file.attrs["version"], "of", file.attrs["model"].decode())
print(json.loads(file.attrs["stimulus"])["corpus"])

# %%
# Two formulas give attention. The log weight of the key d tokens back is ``a = s - z``, and
# attention to key 0 is ``exp(sink_score - normalizer)``. Layers come first, then sequences, queries
# and heads.

z = file["normalizer"][2]
s = file["offset_score"][2][..., list(file.attrs["offsets"]).index(1)]
print("attention to the token before, layer 2:", np.exp(s - z).mean(axis=(0, 1)).round(3))
print(
    "attention to key 0, layer 2:           ",
    np.exp(file["sink_score"][2] - z).mean(axis=(0, 1)).round(3),
)

# %%
# The position effect, by hand: the same windows behind 1 token and behind 48, over items.
# ``prefix_length`` says which sequence is which, and ``item`` which window it shows.

prefix = file["prefix_length"][:]
log_weight = s - z
early, late = log_weight[prefix == 1], log_weight[prefix == 48]
print("T, nats, by head:", (early - late).mean(axis=(0, 1)).round(3))

# %%
# And all of them, layer by layer.

fig, ax = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
log_weights = file["offset_score"][..., 0] - file["normalizer"][:]
effects = (log_weights[:, prefix == 1] - log_weights[:, prefix == 48]).mean(axis=(1, 2))
picture = ax.imshow(effects, cmap="RdBu_r", vmin=-1, vmax=1)
ax.set(xlabel="head", ylabel="layer", xticks=range(4), yticks=range(4))
fig.colorbar(picture, label="T (nats)")
file.close()
