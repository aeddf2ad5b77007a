"""Claims that answer one question are a family, and are adjusted for each other.

A claim stands at the level of its own interval. Of many claims on one model some would be decided
by chance, so each is also judged by a p-value that Holm's method adjusts within its family. This
bounds the probability that any claim of a family is decided wrongly. Identities, which are judged
against rounding, are not among those counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from posprobe.claims.verdicts import Claim, counted
from posprobe.intervals import holm

__all__ = ["FAMILIES", "adjusted"]

FAMILIES = {
    "channels": "Does attention tell absolute position, and which channel carries it?",
    "exact": "Does the split hold where it must be exact?",
    "probes": "Can position be read off one layer?",
    "sinks": "Do some heads read position 0, and forward what they read?",
    "position0": "Is position 0 a closed system?",
    "replacement": "What does another embedding at position 0 remove?",
    "masks": "What is left of both channels under another mask?",
    "architectures": "Does it hold across architectures?",
    "V_R": "H1 and H2: is the residual channel ordered, and does it grow with depth?",
    "relative": "H1 and H2, on the size of the residual channel relative to the mask's",
    "presence": "H3: are both channels there in every architecture?",
}


def adjusted(claims: Iterable[Claim]) -> list[Claim]:
    """Adjust the p-values of claims within their families.

    Parameters
    ----------
    claims : iterable of Claim
        With their `family`.

    Returns
    -------
    list of Claim
        The same claims in the same order, with `p_adjusted` and `verdict_adjusted`.
    """
    claims = list(claims)
    families: dict[str, list[int]] = {}
    for at, claim in enumerate(claims):
        if claim.p_value is not None:
            families.setdefault(claim.family, []).append(at)
    for members in families.values():
        p_values = holm([claims[at].p_value or 0.0 for at in members])
        for at, p_value in zip(members, p_values, strict=True):
            claims[at] = counted(claims[at], float(p_value))
    return claims
