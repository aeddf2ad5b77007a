"""Shifted captures of several models whose residual channels have known sizes."""

import numpy as np
import synthetic

MASK = np.array([1.0, 0.4, 0.0])
RESIDUAL = np.array([-1.0, -0.2, 0.0])
# size of the residual effect, and how it grows from the first layer to the last
TRUTH = {"ntk": (0.4, 0.0), "rope": (0.7, 0.0), "window": (1.0, 0.6)}


def file_of(
    path, name, *, size=0.5, growth=0.0, mask=1.0, layers=3, heads=2, n=8, seed=0, **fields
):
    """A shifted capture whose residual channel is `size` at mid depth; items are paired by seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    depth = np.linspace(-0.5, 0.5, layers) if layers > 1 else np.zeros(1)
    item = 1 + 0.1 * rng.normal(size=(n, 1))
    parts = [
        synthetic.effect_arrays(
            mask * item * MASK, (size + growth * z) * item * RESIDUAL, 0.05, heads=heads, rng=rng
        )
        for z in depth
    ]
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    window, prefixes = fields.pop("window", 4), fields.pop("prefixes", (1, 4, 7))
    first_item = fields.pop("first_item", 0)
    index = synthetic.shifted_index(n, prefixes, 4, first_item) | fields.pop("index", {})
    header = dict(model=f"zoo/{name}", weights_digest=name, design="shifted", offsets=(1,))
    header |= dict(prefixes=prefixes, window=window, length=prefixes[-1] + 4)
    return synthetic.write(path, arrays, index=index, **header | fields)


def family(folder, seeds=3, truth=TRUTH, spread=0.05, **fields):
    rng = np.random.default_rng(1)
    counts = {name: seeds for name in truth} if isinstance(seeds, int) else seeds
    return [
        file_of(
            folder / f"{kind}-{k}" / "shifted.h5", f"{kind}-{k}",
            size=size + spread * rng.normal(), growth=growth + spread * rng.normal(),
            mask=1 + 0.2 * spread * rng.normal(), **fields,
        )
        for kind, (size, growth) in truth.items()
        for k in range(counts[kind])
    ]  # fmt: skip


def variants(folder, truth=None, **fields):
    truth = truth or {"standard": TRUTH["rope"], "ntk(8)": TRUTH["ntk"], "window(3)": (1.0, 0.6)}
    return [
        file_of(
            folder / f"{name}.h5", "smol", size=size, growth=growth, mask=1 + size / 10,
            variant=name,
            interventions=[{"is": name}], **fields,
        )
        for name, (size, growth) in truth.items()
    ]  # fmt: skip
