"""Several models side by side: both channels by architecture, and along the depth."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from posprobe.figures.style import MASK, OTHER, RESIDUAL, TOTAL, Panel, Tables, legend_below

__all__ = ["PANELS"]

LONGEST_NAME = 32
DASHES = ("-", "--", "-.", ":")
DEPTH_PANELS = {
    "V_R": ("residual channel V_R (nats²)", "How does the residual channel change with depth?"),
    "V_M": ("mask channel V_M (nats²)", "How does the mask channel change with depth?"),
    "V_T": ("total V_T (nats²)", "How does the total effect change with depth?"),
    "C_MR": ("covariance C of both (nats²)", "Where do the channels oppose each other?"),
}
PARTS = {"V_M": ("mask V_M", MASK), "V_R": ("residual stream V_R", RESIDUAL), "C_MR": (
    "covariance C of both", OTHER), "V_T": ("total V_T", TOTAL)}  # fmt: skip


def _colours(names: list[str]) -> dict[str, tuple[str, str]]:
    """A colour and a dash for each architecture."""
    palette = sns.color_palette("colorblind").as_hex()
    return {
        name: (palette[k % len(palette)], DASHES[k % len(DASHES)]) for k, name in enumerate(names)
    }


def depth_profile(tables: Tables, ax: Axes, quantity: str) -> Axes:
    """One quantity along the depth: models thin, the mean of each architecture thick."""
    table = tables["layers"].astype({"depth": float, quantity: float})
    names = list(dict.fromkeys(table["architecture"]))
    for name, (colour, dash) in _colours(names).items():
        rows = table[table["architecture"] == name]
        models = list(rows.groupby("model", sort=False))
        for _, one in models:
            ax.plot(one["depth"], one[quantity], color=colour, lw=0.7, alpha=0.5)
        depths, mean = _mean_profile([one for _, one in models], quantity)
        count = f" ({len(models)} models)" if len(models) > 1 else ""
        ax.plot(depths, mean, color=colour, ls=dash, lw=2.5, label=name + count)
        if len(models) == 1:
            low, high = (rows[f"{quantity}{end}"].astype(float) for end in ("_low", "_high"))
            ax.fill_between(rows["depth"], low, high, color=colour, alpha=0.12, lw=0)
    ax.axhline(0, color="black", lw=0.7)
    label, title = DEPTH_PANELS[quantity]
    ax.set(title=title, xlabel="relative depth (0: first layer, 1: last)", ylabel=label)
    legend_below(ax, min(3, len(names)))
    return ax


def _mean_profile(
    models: list[pd.DataFrame], quantity: str
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean over models, at the depths of the shallowest; the others are interpolated."""
    depths = min((one["depth"].to_numpy() for one in models), key=len)
    curves = [np.interp(depths, one["depth"], one[quantity]) for one in models]
    return depths, np.mean(curves, axis=0)


def balance(tables: Tables, ax: Axes) -> Axes:
    """Both channels, their covariance and the total of each architecture; models as small dots."""
    table, models = tables["architectures"], tables["models"]
    names = list(dict.fromkeys(table["architecture"]))
    for k, (quantity, (label, colour)) in enumerate(PARTS.items()):
        rows = table[table["quantity"] == quantity].set_index("architecture").loc[names]
        heights = np.arange(len(names)) + 0.18 * (k - 1.5)
        unit = "models" if rows["low_models"].notna().any() else "items"
        low, high = (rows[f"{end}_{unit}"].astype(float) for end in ("low", "high"))
        ax.hlines(heights, low, high, colour, lw=1.6)
        ax.plot(rows["estimate"].astype(float), heights, "o", ms=5, color=colour, label=label)
        for name, height in zip(names, heights, strict=True):
            values = models.loc[models["architecture"] == name, quantity].astype(float)
            if len(values) > 1:
                ax.plot(values, np.full(len(values), height), "|", ms=6, color=colour, alpha=0.6)
    ax.axvline(0, color="black", lw=0.7)
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlabel="variance over positions (nats²)")
    ax.locator_params(axis="x", nbins=6)
    ax.set_title("How much is mask and how much residual stream?")
    legend_below(ax)
    return ax


def residuals(tables: Tables, ax: Axes) -> Axes:
    """What the mixed model leaves of each layer of each model, against what it predicts."""
    table = tables["residuals"].astype({"fitted": float, "residual": float})
    for name, (colour, _) in _colours(list(dict.fromkeys(table["architecture"]))).items():
        rows = table[table["architecture"] == name]
        ax.plot(rows["fitted"], rows["residual"], "o", ms=4, color=colour, alpha=0.7, label=name)
    ax.axhline(0, color="black", lw=0.7)
    ax.set(xlabel="fitted V_R (nats²)", ylabel="residual (nats²)")
    ax.set_title("What does the mixed model leave?")
    legend_below(ax, 3)
    return ax


def influence(tables: Tables, ax: Axes) -> Axes:
    """Cook's distance of each model."""
    table = tables["influence"].astype({"cook": float})
    colours = _colours(list(dict.fromkeys(table["architecture"])))
    shades = [colours[name][0] for name in table["architecture"]]
    heights = np.arange(len(table))
    ax.hlines(heights, 0, table["cook"], shades, lw=2)
    ax.scatter(table["cook"], heights, c=shades, s=18)
    ax.set_yticks(heights, [_short(name) for name in table["model"]])
    ax.set(ylim=(len(table) - 0.5, -0.5), xlim=(0, None), xlabel="Cook's distance")
    ax.set_title("Which model moves the estimates most?")
    return ax


def _short(name: str) -> str:
    """A name that leaves room for the figure beside it."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


PROFILE = (
    "Thin lines: models (mean over heads). Thick: mean over the models of an architecture. Band: "
    "{level} interval over items of an architecture with one model; the table has the intervals of "
    "the others."
)
PANELS: dict[str, Panel] = {
    "balance": Panel(
        "architectures",
        balance,
        "Dots: mean over the models of an architecture. Strokes: its models. Bars: {level} "
        "intervals over models where an architecture has several, over items "
        "otherwise.",
        height=lambda table: 1.6 + 0.75 * table["architecture"].nunique(),
    ),
    **{
        f"depth_{quantity}": Panel("layers", partial(depth_profile, quantity=quantity), PROFILE)
        for quantity in DEPTH_PANELS
    },
    "residuals": Panel(
        "residuals",
        residuals,
        "Dots: layers of models. Points that fan out or bend away from the line are not what the "
        "mixed model assumes; its {level} intervals are then beside the point, and those over "
        "models are not.",
    ),
    "influence": Panel(
        "influence",
        influence,
        "The squared change of all estimates of the mixed model without one model, in units of "
        "their covariance. Above 1 the {level} intervals hang on that model.",
        height=lambda table: 1.2 + 0.24 * len(table),
    ),
}
