"""Selections as they are written on a command line."""

import pytest

from posprobe.captures.selection import parse_layers, parse_positions
from posprobe.errors import StimulusError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3", [3]),
        ("last", [19]),
        ("0-3, 10", [0, 1, 2, 3, 10]),
        ("17-last", [17, 18, 19]),
        ("5,2-3,2", [2, 3, 5]),
        ("all", list(range(20))),
        ("all/8", [0, 8, 16]),
        ("3-12/4", [3, 7, 11]),
        ("last-last", [19]),
    ],
)
def test_numbers(text, numbers):
    assert parse_positions(text, 20) == tuple(numbers)
    if "last" not in text and "all" not in text:
        assert parse_layers(text, 20) == tuple(numbers)


def test_the_last_layer_is_the_output_of_the_last_block():
    assert parse_layers("last", 5) == (5,)
    assert parse_layers("all", 2) == (0, 1, 2)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("blocks.3.hook_resid_pre", [3]),
        ("blocks.3.hook_resid_post", [4]),
        ("blocks.*.hook_resid_post", [1, 2, 3, 4, 5]),
        ("blocks.[01].hook_resid_*", [0, 1, 2]),
        ("blocks.0.hook_resid_pre,4-last", [0, 4, 5]),
    ],
)
def test_names_of_hooks_are_layers(text, layers):
    assert parse_layers(text, 5) == tuple(layers)


@pytest.mark.parametrize("text", ["", "1,", "-3", "1-2-3", "5-", "1/2", "all/0", "every", "1.5"])
def test_what_is_no_selection_is_refused(text):
    with pytest.raises(
        StimulusError, match=r"--positions: '.*' is not a valid selection; for example"
    ):
        parse_positions(text, 20)
    with pytest.raises(
        StimulusError, match=r"--layers: '.*' is not a valid selection; for example"
    ):
        parse_layers(text, 20)


@pytest.mark.parametrize("text", ["20", "0-20", "7-3", "last-3"])
def test_numbers_that_are_not_there_are_refused(text):
    with pytest.raises(StimulusError, match=f"--positions: '{text}' is not a range within 0 to 19"):
        parse_positions(text, 20)


@pytest.mark.parametrize("name", ["blocks.5.hook_resid_pre", "blocks.0.attn.hook_z", "blocks."])
def test_hooks_that_are_not_there_are_refused(name):
    with pytest.raises(StimulusError, match=r"is called 'blocks\..*use blocks.0.hook_resid_pre to"):
        parse_layers(name, 5)
