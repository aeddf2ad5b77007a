"""Make the stored captures: parts of the captured files of analysis 1, small enough to commit.

Run it with ``python tests/golden/make_captures.py [FOLDER]`` after ``analyses/01_two_channels.py``,
whose captured files are in ``out/01_two_channels``, and copy the checksums that it prints to
README.md.

Each part is a file of the same format with one layer and some heads. What is kept is kept bit for
bit; quantities that no pinned row reads are left out, and re-masked normalizers are kept for the
latest window of each item only (NaN elsewhere): the others are never read.
"""

import dataclasses
import hashlib
import lzma
import tempfile
from pathlib import Path

import click
import numpy as np

from posprobe.store import DATA_SETS, ActivationStore, StoreWriter

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(__file__).resolve().parent / "captures"
SCORES = ("normalizer", "sink_score", "offset_score", "remasked_normalizer", "remasked_body")
LAYER = 15
HEADS = {"shifted": (3,), "repeated": tuple(range(9)), "natural": (3,)}
KEPT = {"shifted": SCORES, "repeated": SCORES, "natural": SCORES[:2]}


def part_of(store: ActivationStore, layer: int, heads: tuple[int, ...], names: tuple[str, ...]):
    """Header and values of one layer and some heads."""
    header = dataclasses.replace(
        store.header.with_layer(layer), n_heads=len(heads), quantities=names
    )
    values = {}
    for name in names:
        axis = DATA_SETS[name].axes[1:].index("H")
        values[name] = np.take(store.read(name, layer), heads, axis=axis)[np.newaxis].copy()
        if store.design == "shifted" and name.startswith("remasked"):
            values[name][:, store.prefix_length < store.prefixes[-1]] = np.nan
    return header, values


def write_part(source: Path, target: Path, *part) -> None:
    """Write a part of a captured file, compressed."""
    with ActivationStore(source) as store, tempfile.TemporaryDirectory() as folder:
        header, values = part_of(store, *part)
        index = {name: store.read(name) for name in header.index}
        with StoreWriter.create(Path(folder) / target.stem, header, index) as writer:
            writer.write(values)
            written = writer.finish()
        target.write_bytes(lzma.compress(written.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


@click.command(help=__doc__.splitlines()[0])
@click.argument(
    "folder", default=ROOT / "out" / "01_two_channels", type=click.Path(path_type=Path, exists=True)
)
def main(folder: Path) -> None:
    """Write every part, and print its size and checksum."""
    TARGET.mkdir(exist_ok=True)
    for design, names in KEPT.items():
        target = TARGET / f"{design}.h5.xz"
        write_part(folder / f"{design}.h5", target, LAYER, HEADS[design], names)
        data = target.read_bytes()
        print(f"{target.name}  {len(data):,} bytes  {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
