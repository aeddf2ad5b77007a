"""The shape of the code for position: by layer, and aligned between layers, texts and variants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mechanism.elsewhere import LAYERS, natural_files
from tqdm.auto import tqdm

from posprobe.probes import Features, PositionShape, align_shapes, features, position_shape
from posprobe.report.words import number, with_interval
from posprobe.store import ActivationStore

STRIDE = 4  # positions that are drawn and aligned
PERMUTATIONS = 99


def shape_tables(name: str, files: Path) -> dict[str, pd.DataFrame]:
    """Numbers of every layer's code, coordinates to draw it, and alignments."""
    stores = {what: ActivationStore(path) for what, path in natural_files(name, files).items()}
    native = {layer: shape_of(stores["native"], layer) for layer in tqdm(LAYERS, desc="shapes")}
    drawn = [coordinates(layer, shape) for layer, shape in native.items()]
    aligned = []
    for layer in LAYERS:
        for what, store in stores.items():
            if what != "native":
                other = shape_of(store, layer)
                aligned.append(alignment_row("native", layer, what, layer, native[layer], other))
        for later in LAYERS:
            if later > layer:
                pair = native[layer], native[later]
                aligned.append(alignment_row("native", layer, "native", later, *pair))
    return {
        "shape": pd.DataFrame([shape_row(layer, shape) for layer, shape in native.items()]),
        "coordinates": pd.concat(drawn, ignore_index=True),
        "alignment": pd.DataFrame(aligned),
    }


def shape_of(store: ActivationStore, layer: int) -> PositionShape:
    """The code of one layer, at every `STRIDE`-th position."""
    data = features(store, layer, "residual")
    kept = data.y % STRIDE == 0
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
    what: str, layer: int, with_what: str, with_layer: int, one: PositionShape, other: PositionShape
) -> dict[str, object]:
    """How similar two codes are up to rotation and scale."""
    found = align_shapes(one, other, permutations=PERMUTATIONS)
    place = {"file": what, "layer": layer, "with": with_what, "with_layer": with_layer}
    return place | vars(found)


def shape_finding(table: pd.DataFrame) -> list[str]:
    """Whether the code is low-dimensional, and whether it goes with log position."""
    few = bool((table["dimension_high"] < 5).all())
    log = table["share log_low"] > table["share linear_high"]
    line = table["share linear_low"] > table["share log_high"]
    rows = "; ".join(
        f"block {row['layer']:.0f} {with_interval(row, 'dimension')}" for _, row in table.iterrows()
    )
    return [
        f"- **The code for position is low-dimensional: {'supported' if few else 'undecided'}.** "
        f"Effective dimension {rows}. It goes with log position rather than position in "
        f"{log.sum()} of {len(table)} blocks, with position rather than its log in {line.sum()} "
        "(intervals of the shares do not overlap)."
    ]


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
    across = alignment[alignment["with"] != "native"]
    others = list(across["with"].unique())
    lines += ["", "Similarity with the native code of the same block, after the best rotation (1: "
              "the same shape), and its mean where positions are permuted:", ""]  # fmt: skip
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
    both = pd.concat([own, own.rename(columns={"layer": "with_layer", "with_layer": "layer"})])
    matrix = both.pivot(index="layer", columns="with_layer", values="similarity").astype(float)
    shown = ax.imshow(matrix.fillna(1.0), vmin=0, vmax=1, cmap="viridis")
    ax.set_xticks(range(len(matrix)), matrix.columns)
    ax.set_yticks(range(len(matrix)), matrix.index)
    ax.set(xlabel="block", ylabel="block")
    ax.set_title("similarity after the best rotation", size=9)
    figure.colorbar(shown, ax=ax, shrink=0.7)
    return figure
