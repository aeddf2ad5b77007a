"""Parse selections of layers and positions, as they are written on a command line."""

from __future__ import annotations

import fnmatch
import re

from posprobe.errors import StimulusError

__all__ = ["parse_layers", "parse_positions"]

_HOOK = "blocks.{}.hook_resid_{}"
_ITEM = re.compile(r"(\d+|last)(?:-(\d+|last)(?:/([1-9]\d*))?)?")


def parse_positions(text: str, count: int) -> tuple[int, ...]:
    """Parse a selection of stored queries, which are numbered from 0 to `count` - 1.

    Parameters
    ----------
    text : str
        Items separated by commas. An item is a number ``N``, a range ``A-B`` that includes B, or a
        range with a step, ``A-B/STEP``. ``last`` is the number ``count - 1``, and ``all`` is short
        for ``0-last``, also in ``all/STEP``.
    count : int
        Number of queries that are stored of each sequence.

    Returns
    -------
    tuple of int
        The selected numbers in increasing order.

    Raises
    ------
    StimulusError
        If an item is malformed, or a number is not below `count`.

    Examples
    --------
    >>> from posprobe.captures.selection import parse_positions
    >>> parse_positions("0-3,last", 100)
    (0, 1, 2, 3, 99)
    >>> parse_positions("all/32", 100)
    (0, 32, 64, 96)
    """
    return _numbers(text, count, "--positions", "0-63,last or all/16")


def parse_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """Parse a selection of layers of the residual stream, which are numbered from 0 to `n_layers`.

    Parameters
    ----------
    text : str
        Items separated by commas, as in `parse_positions`; ``last`` is the output of the last
        block, number `n_layers`. An item may also be a TransformerLens hook name, with ``*`` as a
        wildcard: ``blocks.5.hook_resid_pre`` is layer 5 and ``blocks.5.hook_resid_post`` layer 6.
    n_layers : int
        Number of blocks of the model.

    Returns
    -------
    tuple of int
        The selected layers in increasing order.

    Raises
    ------
    StimulusError
        If an item is malformed, or the model has no such layer.

    Examples
    --------
    >>> from posprobe.captures.selection import parse_layers
    >>> parse_layers("0-2,blocks.11.hook_resid_post", 12)
    (0, 1, 2, 12)
    """
    hooks = {
        _HOOK.format(layer, kind): layer + (kind == "post")
        for layer in range(n_layers)
        for kind in ("pre", "post")
    }
    chosen: set[int] = set()
    for item in _items(text):
        if item.startswith("blocks."):
            found = fnmatch.filter(hooks, item)
            if not found:
                raise StimulusError(
                    f"--layers: no hook of the residual stream is called {item!r}; use "
                    f"{_HOOK.format(0, 'pre')} to {_HOOK.format(n_layers - 1, 'post')}"
                )
            chosen.update(hooks[name] for name in found)
        else:
            example = "0-5,last or blocks.5.hook_resid_pre"
            chosen.update(_numbers(item, n_layers + 1, "--layers", example))
    return tuple(sorted(chosen))


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _numbers(text: str, count: int, option: str, example: str) -> tuple[int, ...]:
    chosen: set[int] = set()
    for item in _items(text):
        match = _ITEM.fullmatch(re.sub(r"^all(?=$|/)", "0-last", item))
        if match is None:
            raise StimulusError(
                f"{option}: {item!r} is not a valid selection; for example {example}"
            )
        bounds = match[1], match[2] or match[1]
        first, end = (count - 1 if bound == "last" else int(bound) for bound in bounds)
        if not first <= end < count:
            raise StimulusError(f"{option}: {item!r} is not a range within 0 to {count - 1}")
        chosen.update(range(first, end + 1, int(match[3] or 1)))
    return tuple(sorted(chosen))
