"""Find items that are the same tokens: repeats are not independent, and intervals treat them so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["repeated_items", "repeats_in_words"]

LISTED = 5  # groups that a sentence lists


def repeated_items(
    tokens: np.ndarray, item: np.ndarray, prefix_length: np.ndarray
) -> tuple[tuple[int, ...], ...]:
    """Find the groups of items whose sequences are the same, token for token.

    Parameters
    ----------
    tokens : ndarray of shape (S, T)
        Token ids, padded on the right with -1.
    item : ndarray of shape (S,)
        Item of each sequence.
    prefix_length : ndarray of shape (S,)
        Tokens ahead of the window of each sequence.

    Returns
    -------
    tuple of tuple of int
        The items of each group, in increasing order.

    Examples
    --------
    >>> import numpy as np
    >>> repeated_items(np.array([[5, 6], [7, 8], [5, 6]]), np.array([0, 1, 2]), np.zeros(3))
    ((0, 2),)
    """
    order = np.lexsort((prefix_length, item))
    by_item: dict[int, bytes] = defaultdict(bytes)
    for sequence in order:
        by_item[int(item[sequence])] += tokens[sequence].tobytes()
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, content in by_item.items():
        groups[content].append(number)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def repeats_in_words(groups: Sequence[Sequence[int]], n_items: int) -> str:
    """Name repeated items, or say that there are none.

    Parameters
    ----------
    groups : sequence of sequence of int
        From `repeated_items`.
    n_items : int
        Number of all items.

    Returns
    -------
    str

    Examples
    --------
    >>> repeats_in_words([(0, 2), (1, 4, 5)], 8)
    '3 of 8 items repeat others token for token (0 = 2, 1 = 4 = 5)'
    """
    if not groups:
        return "none"
    surplus = sum(len(group) - 1 for group in groups)
    named = [" = ".join(map(str, group[:LISTED])) for group in groups[:LISTED]]
    more = ", ..." if len(groups) > LISTED or max(map(len, groups)) > LISTED else ""
    verb = "repeats another" if surplus == 1 else "repeat others"
    return f"{surplus} of {n_items} items {verb} token for token ({', '.join(named)}{more})"
