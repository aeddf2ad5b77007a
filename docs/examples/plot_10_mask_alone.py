"""
See what the mask does alone
============================

Repeat one token all along, without a BOS. All hidden states are then equal, so the residual stream
knows no position, and all that position does to attention comes from the number of keys that the
mask shows. The residual channel must be 0.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import posprobe
from posprobe.channels import channel_effects

model = posprobe.load_model("zoo/rope-0")
path = Path(tempfile.mkdtemp()) / "repeated.h5"
store = posprobe.capture(
    model, path, design="repeated", bos="none", n=3, length=64, window=16, progress=False
)

effects = [channel_effects(store, layer) for layer in range(store.header.n_layers)]
for layer, found in enumerate(effects):
    largest = np.abs(found.mask).max(), np.abs(found.residual).max()
    print("layer {}: largest mask effect {:.2f} nats, residual {:.1e}".format(layer, *largest))

# %%
# What is left of R is rounding. A model with learned absolute positions would fail here, as it
# must.

total = np.mean([found.total.mean(axis=(0, 2, 3)) for found in effects], axis=0)
mask = np.mean([found.mask.mean(axis=(0, 2, 3)) for found in effects], axis=0)
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(effects[0].positions, total, color="black", linewidth=4, alpha=0.3, label="total")
ax.plot(effects[0].positions, mask, color="#0072b2", label="mask")
ax.set(xlabel="position", ylabel="effect on log attention (nats)", xscale="log")
ax.legend()
