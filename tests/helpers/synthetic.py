"""Stored files without a model: from scores written out key by key, or from effects as wished."""

import numpy as np

from posprobe.store import ActivationStore, Header, StoreWriter

SCORES = ("normalizer", "sink_score", "offset_score", "remasked_normalizer", "remasked_body")


def logsumexp(x, axis=-1):
    top = x.max(axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(x - top).sum(axis))


def write(path, arrays, *, index=None, **fields):
    """Write arrays (layer, sequence, ...) to a file and open it; the header is read off them."""
    layers, n, queries, heads = arrays.get(
        "normalizer", np.zeros((fields.pop("n_layers", 1), fields.pop("n_sequences", 1), 1, 1))
    ).shape
    if "residual" in arrays:
        fields.setdefault("width", arrays["residual"].shape[-1])
    elif "position0" in arrays:
        fields.setdefault("width", arrays["position0"].shape[-1])
    length = fields.setdefault("length", queries)
    header = Header(
        **dict(
            model="synthetic",
            design="natural",
            n_layers=layers,
            n_heads=heads,
            width=1,
            n_sequences=n,
            n_queries=queries,
            quantities=tuple(arrays),
            layer_window=(0,) * layers,
            stimulus={"bos_token": 1},
        )
        | fields
    )
    whole = dict(
        tokens=different(n, length),
        item=np.arange(n),
        prefix_length=np.zeros(n),
        sequence_id=np.arange(n),
        query_start=np.zeros(n),
    ) | (index or {})
    with StoreWriter.create(path, header, whole, overwrite=True) as writer:
        writer.write({name: np.asarray(values, "f4") for name, values in arrays.items()})
        writer.finish()
    return ActivationStore(path)


def different(n, length):
    """The same first token in all sequences, and behind it another in each."""
    tokens = np.ones((n, length))
    tokens[:, 1:] += np.arange(1, n + 1)[:, None]
    return tokens


def shifted_index(n_items, prefixes, window, first_item=0):
    """Sequences in the order of `make_stimulus`: all items behind one prefix, then the next."""
    ahead = np.repeat(prefixes, n_items)
    tokens = np.full((len(ahead), prefixes[-1] + window), -1)
    for row, prefix in zip(tokens, ahead, strict=True):
        row[: prefix + window] = 1
    item = np.tile(first_item + np.arange(n_items), len(prefixes))
    tokens[:, 1:] = np.where(tokens[:, 1:] < 0, -1, item[:, None] + 2)
    return dict(
        tokens=tokens,
        item=item,
        prefix_length=ahead,
        sequence_id=np.arange(len(ahead)),
        query_start=ahead,
    )


def shuffled(arrays, index, rng):
    """The same sequences in another order."""
    order = rng.permutation(len(index["item"]))
    return (
        {name: values[:, order] for name, values in arrays.items()},
        {name: np.asarray(values)[order] for name, values in index.items()},
    )


def effect_arrays(mask, residual, noise=0.0, *, window=4, offsets=(1,), heads=1, rng=None):
    """Arrays of a shifted capture whose M(p) and R(p) are as given, (N, P), in nats.

    Every row of the window has the same effects, and independent noise on its normalizer.
    """
    n, p = mask.shape
    rng = rng or np.random.default_rng(0)
    shape = (1, p * n, window, heads)
    total = (mask + residual).T.reshape(-1)
    z = -total[None, :, None, None] + noise * rng.normal(size=shape)
    remasked = np.full((1, p * n, p, window, heads), np.nan)
    late = slice((p - 1) * n, None)
    remasked[0, late] = -(mask - mask[:, -1:])[:, :, None, None]
    return {
        "normalizer": z,
        "sink_score": np.full(shape, -20.0),
        "offset_score": np.zeros((*shape, len(offsets))),
        "remasked_normalizer": remasked,
        "remasked_body": remasked.copy(),
    }


def effect_store(path, mask, residual, noise=0.0, *, prefixes=None, window=4, **options):
    """A shifted file whose M(p) and R(p), (N, P), are as given."""
    fields = options.pop("fields", {})
    prefixes = prefixes or tuple(3 * k + 1 for k in range(mask.shape[1]))
    arrays = effect_arrays(mask, residual, noise, window=window, **options)
    return write(
        path,
        arrays | fields.pop("arrays", {}),
        index=shifted_index(len(mask), prefixes, window) | fields.pop("index", {}),
        design="shifted",
        length=prefixes[-1] + window,
        prefixes=prefixes,
        window=window,
        offsets=options.get("offsets", (1,)),
        **fields,
    )


class Rows:
    """Scores written out key by key, and everything that follows from them by brute force.

    `scores[n, p]` are the scores (head, row, key) of item n's window behind prefix p; keys are
    positions in that sequence. In the natural layout all p are cut from one sequence.
    """

    def __init__(self, rng, *, design, n=4, prefixes=(1, 3, 6, 11), window=6, heads=2, limit=0):
        self.design, self.prefixes, self.window, self.limit = design, prefixes, window, limit
        self.n, self.heads = n, heads
        self.offsets = (1, 2, 4)
        self.length = prefixes[-1] + window
        whole = rng.normal(size=(n, heads, self.length, self.length)) * 1.5
        self.whole, self.scores = whole, {}
        for item in range(n):
            for prefix in prefixes:
                if design == "shifted":
                    scores = rng.normal(size=(heads, window, prefix + window)) * 1.5
                    scores[..., 0] += rng.normal() * 2
                else:
                    scores = whole[item][:, prefix : prefix + window, : prefix + window]
                self.scores[item, prefix] = scores

    def visible(self, position):
        """Keys that a query at `position` sees, by its own mask."""
        first = max(0, position - self.limit + 1) if self.limit else 0
        return np.arange(first, position + 1)

    def remasked_keys(self, prefix, row):
        """Keys of the latest sequence that the late row sees under the mask of `prefix`."""
        late = self.prefixes[-1] + row
        seen = self.visible(prefix + row)
        nearest = late - (prefix + row - seen[seen > 0])
        return nearest, bool((seen == 0).any())

    def log_attention(self, scores, position, key):
        return scores[key] - logsumexp(scores[self.visible(position)])

    def late_body(self, item, head, prefix, row):
        """Late scores of the row's own and nearest prefix keys, and whether key 0 is seen."""
        scores = self.scores[item, self.prefixes[-1]][head, row]
        nearest, sees_first = self.remasked_keys(prefix, row)
        return scores[nearest], sees_first

    def relative_sink(self, item, head, prefix, row, offsets):
        scores, position = self.scores[item, prefix][head, row], prefix + row
        near = [scores[position - d] for d in offsets if d <= row]
        return scores[0] - np.mean(near), np.mean(near)

    def expected(self):
        """T, M, R, S as (item, prefix, head, offset), one key and one row at a time."""
        ref = self.prefixes[-1]
        offsets = [d for d in self.offsets if d < min(self.limit or np.inf, self.window)]
        out = np.zeros((4, self.n, len(self.prefixes), self.heads, len(offsets)))
        for at in np.ndindex(out.shape[1:]):
            item, p, head, d = at
            prefix, offset = self.prefixes[p], offsets[d]
            cells = [
                self._cell(item, prefix, ref, head, row, offset, offsets)
                for row in range(offset, self.window)
            ]
            out[(slice(None), *at)] = np.mean(cells, axis=0)
        return out

    def _cell(self, item, prefix, ref, head, row, offset, offsets):
        own, late = self.scores[item, prefix][head, row], self.scores[item, ref][head, row]
        total = self.log_attention(own, prefix + row, prefix + row - offset) - self.log_attention(
            late, ref + row, ref + row - offset
        )
        body, sees_first = self.late_body(item, head, prefix, row)
        visible = np.append(body, late[0]) if sees_first else body
        key = late[ref + row - offset]
        remasked = key - logsumexp(visible)  # the late row behind the mask of this prefix
        mask = remasked - self.log_attention(late, ref + row, ref + row - offset)
        residual = self.log_attention(own, prefix + row, prefix + row - offset) - remasked
        sink = 0.0
        if sees_first:
            relative, _ = self.relative_sink(item, head, prefix, row, offsets)
            _, local = self.relative_sink(item, head, ref, row, offsets)
            moved = np.append(body, local + relative)
            sink = (key - logsumexp(moved)) - (key - logsumexp(visible))
        return total, mask, residual, sink

    def arrays(self, gauge=None):
        """What a capture would hold; `gauge(item, position)` is added to all scores of a query."""
        shifted = self.design == "shifted"
        shift = gauge or (lambda item, position: 0.0)
        n_rows = self.window if shifted else self.length
        keys = [(i, p) for p in self.prefixes for i in range(self.n)]
        keys = keys if shifted else [(i, None) for i in range(self.n)]
        shape = (1, len(keys), n_rows, self.heads)
        z, sink = np.zeros(shape), np.zeros(shape)
        offset_score = np.full((*shape, len(self.offsets)), np.nan)
        late = (1, len(keys), len(self.prefixes), self.window, self.heads)
        whole, body = np.full(late, np.nan), np.full(late, np.nan)
        for s, (item, prefix) in enumerate(keys):
            scores = self.scores[item, prefix] if shifted else self.whole[item]
            start = prefix if shifted else 0
            for row, head in np.ndindex(n_rows, self.heads):
                position, c = start + row, shift(item, start + row)
                own = scores[head, row]
                z[0, s, row, head] = logsumexp(own[self.visible(position)]) + c
                sink[0, s, row, head] = own[0] + c
                for d, offset in enumerate(self.offsets):
                    if position >= offset:
                        offset_score[0, s, row, head, d] = own[position - offset] + c
            if shifted and prefix != self.prefixes[-1]:
                continue
            for p, row, head in np.ndindex(late[2:]):
                part, sees_first = self.late_body(item, head, self.prefixes[p], row)
                first = self.scores[item, self.prefixes[-1]][head, row, 0]
                c = shift(item, self.prefixes[-1] + row)
                body[0, s, p, row, head] = logsumexp(part) + c
                full = np.append(part, first) if sees_first else part
                whole[0, s, p, row, head] = logsumexp(full) + c
        return dict(zip(SCORES, (z, sink, offset_score, whole, body), strict=True))

    def store(self, path, *, gauge=None, order=None):
        arrays = self.arrays(gauge)
        n_sequences = arrays["normalizer"].shape[1]
        index = (
            shifted_index(self.n, self.prefixes, self.window)
            if self.design == "shifted"
            else dict(
                tokens=different(n_sequences, self.length),
                item=np.arange(n_sequences),
                prefix_length=np.zeros(n_sequences),
                sequence_id=np.arange(n_sequences),
                query_start=np.zeros(n_sequences),
            )
        )
        if order is not None:
            arrays, index = shuffled(arrays, index, order)
        return write(
            path,
            arrays,
            index=index,
            design=self.design,
            length=self.length,
            prefixes=self.prefixes,
            window=self.window,
            offsets=self.offsets,
            layer_window=(self.limit,),
        )


def study_files(folder, rng, *, n=8, closed=True, **fields):
    """One file for every question of an analysis, of two layers with two heads."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"weights_digest": "abc"} | fields
    stores = {"natural": _natural(folder / "natural.h5", rng, n, closed, fields)}
    mask, residual = np.linspace(1, 0, 4), np.linspace(-0.5, 0, 4)
    m, r = (x + 0.05 * rng.normal(size=(n, 4)) for x in (mask, residual))
    h0 = np.repeat(rng.normal(size=(3, 1, 4)), 4 * n, axis=1)
    treatments = {"shifted": ("native", 1.0), "mean": ("mean", 0.5), "content": ("content", 0.9)}
    for name, (treatment, factor) in treatments.items():
        header = fields | {"position0_treatment": treatment}
        stores[name] = _two_layers(folder / f"{name}.h5", m, factor * r, h0, header)
    same = np.tile(mask, (4, 1))
    opened = np.tile(residual, (4, 1))
    few, plain = h0[:, :16], fields | {"design": "repeated"}
    none = plain | {"stimulus": {"bos_token": None}}
    stores["repeated"] = _two_layers(folder / "repeated.h5", same, 0 * same, few, none)
    stores["bos_repeated"] = _two_layers(folder / "bos_repeated.h5", same, opened, few, plain)
    return stores


def _two_layers(path, mask, residual, h0, header):
    arrays = {
        name: np.repeat(values, 2, axis=0)
        for name, values in effect_arrays(mask, residual, window=4, heads=2).items()
    }
    n, prefixes = len(mask), (1, 6, 12, 20)
    if header.get("design") == "repeated":
        # the layout of the natural design: every row of the longest sequence, item by item
        return _repeated(path, mask, residual, h0[:, :n], prefixes, header)
    return write(
        path,
        arrays | {"position0": h0, "position0_alone": h0},
        index=shifted_index(n, prefixes, 4),
        **dict(design="shifted", length=24, prefixes=prefixes, window=4, offsets=(1,)) | header,
    )


def _repeated(path, mask, residual, h0, prefixes, header):
    n, length, window = len(mask), 24, 4
    z = np.zeros((2, n, length, 2))
    for p, prefix in enumerate(prefixes):
        z[:, :, prefix : prefix + window] = -(mask + residual)[None, :, p, None, None]
    remasked = np.repeat(-(mask - mask[:, -1:])[None, :, :, None, None], 2, 0)
    remasked = remasked * np.ones((2, n, len(prefixes), window, 2))
    arrays = {
        "normalizer": z,
        "sink_score": np.full_like(z, -20.0),
        "offset_score": np.zeros((*z.shape, 1)),
        "remasked_normalizer": remasked,
        "remasked_body": remasked,
        "position0": h0,
        "position0_alone": h0,
    }
    fields = dict(length=length, prefixes=prefixes, window=window, offsets=(1,))
    return write(path, arrays, **fields | header)


def _natural(path, rng, n, closed, header):
    case = Rows(rng, design="natural", n=n, prefixes=(1, 6, 12, 20), window=4)
    case.offsets = (1,)
    arrays = {name: np.repeat(values, 2, axis=0) for name, values in case.arrays().items()}
    stream = rng.normal(size=(3, n, case.length, 4))
    stream[1:, :, :, 0] += np.arange(case.length) / 4
    h0 = stream[:, :, 0]
    index = dict(
        tokens=rng.integers(5, 99, size=(n, case.length)),
        item=np.arange(n),
        prefix_length=np.zeros(n),
        sequence_id=np.arange(n),
        query_start=np.zeros(n),
    )
    more = {
        "sink_value": rng.uniform(1, 2, size=(2, n, 2)),
        "residual": stream,
        "position0": h0,
        "position0_alone": h0 if closed else 1.1 * h0,
    }
    fields = dict(length=case.length, prefixes=case.prefixes, window=4, offsets=(1,))
    return write(path, arrays | more, index=index, **fields | header)
