"""Claims about what linear probes read: position from normalizers and from the residual stream."""

from __future__ import annotations

from posprobe.analysis import Analysis
from posprobe.claims.verdicts import NEGLIGIBLE_R2, Claim, below, found, make_claim, not_applicable

__all__ = ["probe_claims"]


def probe_claims(analysis: Analysis) -> list[Claim]:
    """Whether probes read position, and none from the residual stream of layer 0."""
    names = {
        "probe_normalizer": "Position can be read from the log-normalizers of one layer "
        "(mean R2 over layers > 0).",
        "probe_residual": "Position can be read from the residual stream entering a layer "
        "(mean R2 over layers > 0).",
        "residual_at_layer_0": "Position cannot be read from the residual stream entering layer 0, "
        f"which is the embedding (R2 < {NEGLIGIBLE_R2}).",
    }
    store = analysis.files.natural
    if store is None or "probes" not in analysis.tables:
        reason = "needs a capture of the natural design with the residual stream"
        return [not_applicable(name, text, reason) for name, text in names.items()]
    protocol = (
        f"{store.n_items} natural sequences of {store.length} tokens, position 0 left out; ridge, "
        "5 folds by sequence, penalty chosen on the same folds; R2 out of fold. The interval is "
        "that of the probes as fitted (cluster bootstrap of their scores, t)."
    )
    claims = []
    for features in ("normalizer", "residual"):
        name = f"probe_{features}"
        interval = analysis.intervals[name]
        judged = found(interval, "R2")
        claims.append(make_claim(name, names[name], interval, "R2", judged, protocol))
    name = "residual_at_layer_0"
    first = analysis.intervals.get("probe_residual_layer_0")
    if first is None:
        reason = "needs a natural capture that keeps the residual stream of layer 0"
        return [*claims, not_applicable(name, names[name], reason)]
    judged = below(first, NEGLIGIBLE_R2)
    return [*claims, make_claim(name, names[name], first, "R2", judged, protocol)]
