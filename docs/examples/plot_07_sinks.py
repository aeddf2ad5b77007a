"""
See which heads attend to key 0
===============================

A file keeps each query's normalizer z and its score of key 0. Attention to key 0 is
``exp(sink_score - z)``.
"""

import matplotlib.pyplot as plt
import numpy as np

from posprobe import ActivationStore
from posprobe.intervals import mean_interval

store = ActivationStore("../captures/natural.h5")
n_layers, n_heads = store.header.n_layers, store.header.n_heads

attention = np.stack(
    [np.exp(store.read("sink_score", layer) - store.normalizer(layer)) for layer in range(n_layers)]
)
attention.shape  # layer, sequence, query, head

# %%
# Query 0 sees no other key, so its attention there is 1 and it is left out. First each sequence is
# averaged over its queries, since sequences are the unit.

by_sequence = attention[:, :, 1:].mean(axis=2)
fig, ax = plt.subplots(figsize=(4.6, 3.4), layout="constrained")
picture = ax.imshow(by_sequence.mean(axis=1), cmap="Purples", vmin=0, vmax=1)
ax.set(xlabel="head", ylabel="layer", xticks=range(n_heads), yticks=range(n_layers))
fig.colorbar(picture, label="attention to key 0")

# %%
# The head that attends most, with its interval over sequences.

layer, head = np.unravel_index(by_sequence.mean(axis=1).argmax(), (n_layers, n_heads))
strongest = by_sequence[layer, :, head]
print(f"layer {layer}, head {head}:", mean_interval(strongest, estimand="mean over sequences"))
