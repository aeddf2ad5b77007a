"""Headers and the document that is the format's law."""

from pathlib import Path

import pytest
import store_child as child
from store_files import INDEX, write_all

from posprobe.errors import StoreError
from posprobe.store import AXES, ActivationStore, StoreWriter
from posprobe.store.layout import ATTRIBUTES, DATA_SETS

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 0}, r"'n_heads' is 0, expected integer, 1 to 2\^31 - 1"),
        ({"seed": True}, "'seed' is True, expected integer"),
        ({"seed": 2**63}, r"'seed' is 9223372036854775808, expected integer, 0 to 2\^63 - 1"),
        ({"quantities": ("scores",)}, "'quantities' has 'scores', which is unknown: choose from"),
        ({"quantities": ("residual",) * 2}, "'quantities' has 'residual' twice"),
        ({"offsets": ()}, r"'offset_score', an axis of which has length 0 \(D\)"),
        ({"dtype": "bfloat16"}, "'dtype' is 'bfloat16': choose float32 or float16"),
        ({"n_queries": 17}, "'n_queries' is 17, beyond length 16"),
        ({"prefixes": (1, 12)}, "'prefixes' ends at 12, where a window of 5 does not fit into"),
        ({"prefixes": (3, 1)}, r"'prefixes' is \(3, 1\), expected integers, rising"),
        ({"layer_window": (0,)}, "'layer_window' has 1 entries for 2 layers"),
        ({"residual_layers": (2, 0)}, r"'residual_layers' is \(2, 0\), expected integers, rising"),
        ({"residual_layers": (0, 3)}, "'residual_layers' is 0, 3, beyond 2"),
        ({"residual_queries": (3, 1)}, r"'residual_queries' is \(3, 1\), expected .* rising"),
        ({"residual_queries": (0, 5)}, "'residual_queries' is 0, 5, beyond 4"),
        ({"interventions": [{"cut_sink": [[0, 3]]}]}, "'interventions' names head 3 of 3"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(StoreError, match=message):
        child.header(**change)


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": object()}])
def test_a_header_that_is_no_json_is_refused(tmp_path, value):
    with pytest.raises(StoreError, match="attribute 'config' cannot be written as JSON"):
        StoreWriter.create(tmp_path / "a.h5", child.header(config=value), INDEX)
    assert not list(tmp_path.iterdir())


def test_a_config_beyond_64_kilobytes_is_kept(tmp_path):
    header = child.header(config={"vocabulary": "ü" * 100_000})
    store = ActivationStore(write_all(tmp_path / "a.h5", header))
    assert store.header.config == header.config


# The law


def table(rows):
    return {line.split("|")[1].strip(" `"): line.strip() for line in rows if line.startswith("| `")}


def test_the_document_lists_every_data_set():
    kinds = {"float": "f4 or f2"}
    expected = [
        f"| `{name}` | ({', '.join(q.axes)}) | {kinds.get(q.dtype, q.dtype.strip('<|'))} | "
        f"{q.unit} | {'MAY' if q.nan else 'MUST NOT' if q.by_layer else '-'} | {q.meaning} |"
        for name, q in DATA_SETS.items()
    ]
    text = FORMAT.read_text(encoding="utf-8").partition("## Data sets")[2].partition("\n## ")[0]
    assert table(text.splitlines()) == table(expected)


def test_the_document_lists_every_attribute():
    expected = [f"| `{name}` | {kind} | {text} |" for name, (kind, text) in ATTRIBUTES.items()]
    text = FORMAT.read_text(encoding="utf-8").partition("## Root attributes")[2]
    assert table(text.partition("\n## ")[0].splitlines()) == table(expected)


def test_the_document_lists_every_axis():
    text = FORMAT.read_text(encoding="utf-8").partition("## Axes")[2].partition("\n## ")[0]
    found = {key: row.split(" | ") for key, row in table(text.splitlines()).items()}
    assert {key: (r[1].strip("`"), r[3], r[4].strip(" |")) for key, r in found.items()} == {
        key: tuple(axis) for key, axis in AXES.items()
    }
    assert {axis for q in DATA_SETS.values() for axis in q.axes} == set(AXES)
