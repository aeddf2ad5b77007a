"""The axes of data sets: their names, meanings and units, for whoever opens a file by other means.

A file has one data set for each axis, an HDF5 dimension scale with the axis's coordinates. They
follow from the attributes, so posprobe writes them and does not read them.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["AXES", "Axis"]


class Axis(NamedTuple):
    """One axis.

    Attributes
    ----------
    name : str
        Name of the data set with its coordinates, and of the dimension in xarray.
    unit : str
        ``"tokens"``, or ``"1"`` for a number.
    meaning : str
        One phrase for people to read.
    """

    name: str
    unit: str
    meaning: str


AXES = {
    "L": Axis("layer", "1", "layer, 0-based"),
    "L+1": Axis(
        "stream_layer",
        "1",
        "block that is entered; the last one is the last block's output before the final norm",
    ),
    "R": Axis("residual_layer", "1", "kept rows of L+1, numbered by `residual_layers`"),
    "S": Axis("sequence", "1", "sequence"),
    "T": Axis("position", "tokens", "token position, 0-based"),
    "Q": Axis("query", "tokens", "stored query; its absolute position is `query_start[s] + q`"),
    "K": Axis("residual_query", "tokens", "kept rows of Q, numbered by `residual_queries`"),
    "H": Axis("head", "1", "query head, 0-based"),
    "D": Axis("offset", "tokens", "query position less key position"),
    "P": Axis("prefix", "tokens", "prefix length of the mask counterfactual"),
    "W": Axis("row", "tokens", "one of the last W rows"),
    "d": Axis("dimension", "1", "coordinate of the residual stream"),
    "B": Axis("band", "1", "band of rotation, from the fastest to the slowest"),
    "B+1": Axis("band_or_count", "1", "band of rotation; the last one is the number of keys"),
    "G": Axis("part", "1", "what has a digest: the attributes, then each part of the data"),
}
