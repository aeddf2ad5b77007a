"""
Split what position does to attention
=====================================

The question that posprobe is made for, asked of a stored file: how much of the effect of position
on attention does the mask's softmax denominator bring, and how much the residual stream?
"""

import matplotlib.pyplot as plt

import posprobe

store = posprobe.ActivationStore("../captures/shifted.h5")
print(store.header.model, store.design, store.n_items, "windows behind", store.prefixes, "tokens")

# %%
# The file has ten windows of text, each behind a prefix of 1, 12 and 48 tokens. The words of a
# window are the same three times, so what differs is their position. ``decompose`` compares log
# attention weights at fixed offsets: T is the whole effect, M what the mask does alone, and R = T -
# M.

split = posprobe.decompose(store)
split.overall[["V_T", "V_M", "V_R", "C_MR", "relation"]]

# %%
# The same as effects in nats at each position, against the latest one, with 95% limits over
# windows. Ahead of few tokens, the mask shows few keys, and each gets more attention. The residual
# stream takes part of that back.

effects = split.positions.query("layer == 'all'")
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, label, colour in (
    ("T", "total", "black"),
    ("M", "mask", "#0072b2"),
    ("R", "residual stream", "#d55e00"),
):
    ax.fill_between(
        effects["position"],
        effects[f"{name}_low"],
        effects[f"{name}_high"],
        color=colour,
        alpha=0.2,
    )
    ax.plot(effects["position"], effects[name], "o-", color=colour, label=label)
ax.set(xlabel="tokens ahead of the window", ylabel="effect on log attention (nats)", xscale="log")
ax.axhline(0, color="grey", linewidth=0.8)
ax.legend()

# %%
# Layer by layer, as variances over positions. The limits are studentised bootstrap limits over the
# ten windows.

split.by_layer[["layer", "V_M", "V_M_low", "V_M_high", "V_R", "V_R_low", "V_R_high", "relation"]]
