"""The shape of the code for position: by layer, and aligned between layers, texts and variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mechanism.findings import Finding
from tqdm.auto import tqdm

from posprobe.probes import Features, PositionShape, align_shapes, features, position_shape
from posprobe.report.words import number, with_interval
from posprobe.store import ActivationStore

STRIDE = 4  # positions that are drawn and aligned
PERMUTATIONS = 99
LEVEL = 0.95


def shape_tables(paths: dict[str, Path]) -> dict[str, pd.DataFrame]:
    """Numbers of every layer's code, coordinates to draw it, and alignments."""
    stores = {what: ActivationStore(path) for what, path in paths.items()}
    layers = stores["native"].header.residual_layers or ()
    native = {layer: shape_of(stores["native"], layer) for layer in tqdm(layers, desc="shapes")}
    drawn = [coordinates(layer, shape) for layer, shape in native.items()]
    halves = {layer: shape_of(stores["native"], layer, half=0) for layer in layers}
    aligned = []
    for layer in layers:
        for what, store in stores.items():
            for there in layers if what == "native" else (layer,):
                other = shape_of(store, there, half=1)
                aligned.append(alignment_row(layer, what, there, halves[layer], other))
    return {
        "shape": pd.DataFrame([shape_row(layer, shape) for layer, shape in native.items()]),
        "coordinates": pd.concat(drawn, ignore_index=True),
        "alignment": pd.DataFrame(aligned),
    }


def between_models(paths: dict[str, Path]) -> pd.DataFrame:
    """How alike the native codes of two models are, in blocks at the same part of their depth."""
    (one, first), (other, second) = ((name, ActivationStore(path)) for name, path in paths.items())
    pairs = zip(
        first.header.residual_layers or (), second.header.residual_layers or (), strict=True
    )
    rows = []
    for layer, there in tqdm(list(pairs), desc="between models"):
        shapes = shape_of(first, layer, half=0), shape_of(second, there, half=1)
        rows.append({"model": one, "other": other} | alignment_row(layer, "", there, *shapes))
    return pd.DataFrame(rows).drop(columns="with")


def between_lines(table: pd.DataFrame) -> list[str]:
    """The similarity of two models' codes by depth, and what position permuted gives."""
    first = table.iloc[0]
    above = int((table["p_value"] < 1 - LEVEL).sum())
    lines = [
        "## One code in both models?",
        "",
        f"Similarity of the native codes of {first['model']} and {first['other']} after the best "
        "rotation, in blocks at the same part of the depth, from different halves of the sequences "
        "(1: one shape). Positions permuted: its mean where the positions of one code are "
        f"permuted. In {above} of {len(table)} blocks the similarity is above that of 95% of "
        "permutations, not adjusted.",
        "",
        f"| block of {first['model']} | block of {first['other']} | similarity | permuted | p |",
        "|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        cells = [number(float(row[name])) for name in ("similarity", "null", "p_value")]
        lines.append(f"| {row['layer']} | {row['with_layer']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def shape_of(store: ActivationStore, layer: int, half: int | None = None) -> PositionShape:
    """The code of one layer at every `STRIDE`-th position, from all sequences or every other one.

    What sequences say beside position is noise to their mean. Two codes of the same sequences share
    it, and would be aligned by it, so they are taken from different halves.
    """
    data = features(store, layer, "residual")
    kept = data.y % STRIDE == 0
    if half is not None:
        kept &= data.groups % 2 == half
    return position_shape(Features(data.X[kept], data.y[kept], data.groups[kept], {}))


def shape_row(layer: int, shape: PositionShape) -> dict[str, object]:
    """Numbers with their limits."""
    row: dict[str, object] = {"layer": layer}
    for column in ("size", "dimension", "bend"):
        one = getattr(shape, column)
        row |= {column: one.estimate, **one.limits(column)}
    for basis, share, low, high in shape.shares[["basis", "share", "low", "high"]].to_numpy():
        row |= {f"share {basis}": share, f"share {basis}_low": low, f"share {basis}_high": high}
    return row


def coordinates(layer: int, shape: PositionShape) -> pd.DataFrame:
    """Positions along the first three axes of the code, largest first."""
    values, vectors = np.linalg.eigh(shape.kernel)
    top = vectors[:, ::-1][:, :3] * np.sqrt(np.maximum(values[::-1][:3], 0))
    table = pd.DataFrame(top, columns=["axis 1", "axis 2", "axis 3"])
    table.insert(0, "position", shape.positions)
    table.insert(0, "layer", layer)
    return table


def alignment_row(
    layer: int, what: str, there: int, one: PositionShape, other: PositionShape
) -> dict[str, object]:
    """How similar the native code of a layer is to another one, up to rotation and scale."""
    found = align_shapes(one, other, permutations=PERMUTATIONS)
    return {"layer": layer, "with": what, "with_layer": there} | vars(found)


def shape_finding(table: pd.DataFrame) -> Finding:
    """Whether the code is low-dimensional, and whether it goes with log position."""
    table = table[table["size_low"] > 0]  # without a code there is no shape
    few = len(table) > 0 and bool((table["dimension_high"] < 5).all())
    log = table["share log_low"] > table["share linear_high"]
    line = table["share linear_low"] > table["share log_high"]
    rows = "; ".join(
        f"block {row['layer']:.0f} {with_interval(row, 'dimension')}" for _, row in table.iterrows()
    )
    most = table["dimension_high"].max() if len(table) else float("nan")
    return Finding(
        "The code for position is low-dimensional",
        "supported" if few else "undecided",
        f"dimension below {number(float(most))}" if len(table) else "no code",
        f"Effective dimension, in blocks that have a code: {rows}. It goes with log position "
        f"rather than position in {log.sum()} of {len(table)} blocks, with position rather than "
        f"its log in {line.sum()} (intervals of the shares do not overlap).",
    )


def shape_lines(table: pd.DataFrame, alignment: pd.DataFrame) -> list[str]:
    """Numbers by layer, and alignments with the other files."""
    lines = ["## The shape of the code", ""]
    lines += [
        "The mean stream by position at unit RMS, content averaged out without bias. Size is the "
        "mean squared distance from the centre; bend is 0 for a straight line at even speed; the "
        "shares are of the size.",
        "",
    ]
    columns = ["size", "dimension", "bend", *(c for c in table if c.startswith("share"))]
    columns = [c for c in columns if not c.endswith(("_low", "_high"))]
    lines += [f"| block | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for _, row in table.iterrows():
        cells = [with_interval(row, column) for column in columns]
        lines.append(f"| {row['layer']:.0f} | " + " | ".join(cells) + " |")
    across = alignment[alignment["layer"] == alignment["with_layer"]]
    others = list(across["with"].unique())
    said = (
        "Similarity of the native code of a block, after the best rotation, with that of the other "
        "half of the sequences, natively (all that their number allows) and in each other file; in "
        "brackets its mean where positions are permuted:"
    )
    lines += ["", said, ""]
    lines += [f"| block | {' | '.join(others)} |", "|---" * (1 + len(others)) + "|"]
    for layer, rows in across.groupby("layer"):
        by_file = rows.set_index("with").loc[others]
        cells = [
            f"{number(s)} ({number(n)})" for s, n in by_file[["similarity", "null"]].to_numpy()
        ]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return [*lines, "", "![The code for position](figures/shape.svg)", ""]


def draw_shape(drawn: pd.DataFrame, alignment: pd.DataFrame) -> Figure:
    """Each layer's code in its first two axes, coloured by position, and layers aligned."""
    layers = sorted(drawn["layer"].unique())
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    wide = -(-len(layers) // 2)
    grid = figure.add_gridspec(2, wide + 2)
    for k, layer in enumerate(layers):
        ax = figure.add_subplot(grid[k // wide, k % wide])
        rows = drawn[drawn["layer"] == layer]
        ax.plot(rows["axis 1"], rows["axis 2"], color="#858585", lw=0.7)
        dots = ax.scatter(rows["axis 1"], rows["axis 2"], c=rows["position"], s=9, cmap="viridis")
        ax.set_title(f"block {layer}", size=9)
        ax.set(xticks=[], yticks=[], xlabel="axis 1", ylabel="axis 2")
        ax.set_aspect("equal", adjustable="datalim")
    figure.colorbar(dots, ax=figure.axes, label="position (tokens)", shrink=0.7, location="left")
    ax = figure.add_subplot(grid[:, wide:])
    own = alignment[alignment["with"] == "native"]
    matrix = own.pivot(index="layer", columns="with_layer", values="similarity").astype(float)
    shown = ax.imshow(matrix, vmin=own["null"].min(), vmax=1, cmap="viridis")
    ax.set_xticks(range(len(matrix)), matrix.columns)
    ax.set_yticks(range(len(matrix)), matrix.index)
    ax.set(xlabel="block, other half of the sequences", ylabel="block")
    ax.set_title("similarity after the best rotation,\nfrom where positions are permuted", size=9)
    figure.colorbar(shown, ax=ax, shrink=0.7)
    return figure
