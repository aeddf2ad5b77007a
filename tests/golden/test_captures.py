"""Rows of the report on SmolLM2 (analysis 1), recomputed from parts of its captured files.

Recomputed: layer 15, head 3, of the shifted design in channels_by_head and of the natural design in
sinks; and layer 15 of the design that repeats one token in repeated. The p-values of the first,
which are adjusted for all heads of the model, are not recomputed.
"""

import hashlib
import lzma
import re
from pathlib import Path

import committed
import numpy as np
import pytest

from posprobe.analysis import analyze_files, sort_files
from posprobe.analysis.sinks import sink_table
from posprobe.channels import channel_effects, decompose
from posprobe.store import ActivationStore

HERE = Path(__file__).parent
REPORT = "01_two_channels"
HEAD = {"layer": 15, "head": 3}


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """The stored captures, unpacked, by design."""
    folder = tmp_path_factory.mktemp("captures")
    for packed in (HERE / "captures").glob("*.h5.xz"):
        (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    stores = [ActivationStore(path) for path in folder.glob("*.h5")]
    return {store.design: store for store in stores}


@pytest.fixture(scope="module")
def channels(captures):
    return decompose(captures["shifted"])


def test_the_captures_are_those_that_the_readme_describes(captures):
    text = (HERE / "README.md").read_text(encoding="utf-8")
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (HERE / "captures").iterdir()
    }
    assert dict(re.findall(r"\| (\S+\.h5\.xz) .*\| ([0-9a-f]{64}) \|", text)) == found
    (digest,) = {store.header.weights_digest for store in captures.values()}
    assert digest in text


def test_the_channels_of_one_head(channels, tmp_path):
    table = channels.by_head.assign(stimulus="shifted", **HEAD)
    table = table[["stimulus", "layer", "layer_type", "head", *table.columns[3:-1]]]
    assert len(table) == 1
    found = committed.differences(
        REPORT, "channels_by_head", table, tmp_path, without=committed.COUNTED
    )
    assert not found


def test_attention_to_key_0_of_one_head(captures, tmp_path):
    table = sink_table(captures["natural"]).assign(**HEAD)
    assert len(table) == 1
    assert not committed.differences(REPORT, "sinks", table, tmp_path)


def test_one_token_repeated_in_one_layer(captures, tmp_path):
    files = sort_files([captures["repeated"]])
    table = analyze_files(files).tables["repeated"].assign(layer=HEAD["layer"])
    assert len(table) == 4
    assert not committed.differences(REPORT, "repeated", table, tmp_path)


def test_the_split_is_exact_and_the_residual_channel_closed_there(captures):
    for design in ("shifted", "repeated"):
        effects = channel_effects(captures[design], 0)
        np.testing.assert_array_equal(effects.residual, effects.total - effects.mask)
    assert np.abs(effects.residual).max() < 1e-4 < 1 < np.abs(effects.mask).max()
