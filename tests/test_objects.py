"""What objects show of themselves: one telling line in a terminal, small tables in a notebook."""

import re

import numpy as np
import pandas as pd
import pytest
import study_child as child
import synthetic
from sklearn.utils import estimator_html_repr

import posprobe
from posprobe import GroupRidgeCV, Interval, PositionProbe, VariancePartition
from posprobe.channels import channel_effects
from posprobe.claims.verdicts import Claim
from posprobe.errors import as_html, fact_table
from posprobe.models import load_model
from posprobe.probes import ClusterGram
from posprobe.stimuli import Corpus, make_stimulus, read_text
from posprobe.store import HeldStore

HOSTILE = "<script>alert(1)</script>\x1b]0;b\x07"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    mask, residual = rng.normal(size=(2, 12, 3))
    path = tmp_path_factory.mktemp("store") / "a.h5"
    return synthetic.effect_store(path, mask, residual, fields={"model": HOSTILE})


def of_architectures():
    rng = np.random.default_rng(0)
    rows = [
        {
            "architecture": a,
            "model": f"{a}-{m}",
            "layer": layer,
            "depth": layer / 3,
            "value": rng.normal(),
        }
        for a in ("rope", HOSTILE)
        for m in range(3)
        for layer in range(4)
    ]
    return posprobe.compare_architectures(pd.DataFrame(rows))


def shown_objects(store):
    rng = np.random.default_rng(0)
    gram = ClusterGram.from_arrays(rng.normal(size=(40, 3)), rng.normal(size=40), np.arange(40) % 8)
    text = read_text(["Some words of a text. " * 30])
    split = posprobe.decompose(store)
    claim = Claim(
        id="mask_channel", statement=HOSTILE, estimate=0.5, ci_low=0.25, ci_high=0.75, unit="1",
        verdict="supported", verdict_adjusted="supported", protocol=HOSTILE, n=12,
    )  # fmt: skip
    return {
        "split": (split, "12 items, 1 layers; V_T "),
        "variances": (
            split.variances,
            "V_T, V_M, V_R, C_MR, V_S (nats^2) of 12 items, 1 layers of",
        ),
        "effects": (channel_effects(store, 0), "of 12 items at positions "),
        "gram": (gram, "8 sequences, 3 features, 1 targets, 40 rows, "),
        "text": (text, "a text without a name, 660 characters, documents: 1"),
        "corpus": (Corpus.of_tokens(np.arange(2000)), "no name, 2,000 tokens, documents: 1"),
        "stimulus": (
            make_stimulus("natural", np.arange(2000), n=3, length=64),
            "natural, 3 items in 3 sequences of up to 64 tokens, no BOS, seed 0",
        ),
        "comparison": (of_architectures(), "6 models of 2 architectures"),
        "claim": (claim, "<Claim: mask_channel, supported, 0.5 [0.25, 0.75] 1>"),
        "store": (store, "ActivationStore('"),
        "held": (HeldStore(["normalizer"]), "HeldStore(nothing yet, for normalizer)"),
        "interval": (Interval(0.4, 0.31, 0.52, 0.95, HOSTILE, HOSTILE, 30), "estimate=0.4"),
    }


NAMES = ("split", "variances", "effects", "gram", "text", "corpus", "stimulus", "comparison")
NAMES += ("claim", "store", "held", "interval")


@pytest.mark.parametrize("name", NAMES)
def test_an_object_tells_what_it_is_in_one_line_and_in_a_notebook(name, store):
    one, said = shown_objects(store)[name]
    line, page = repr(one), one._repr_html_()
    assert said in line
    assert "\n" not in line
    assert len(line) < 500
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("<table>") == page.count("</table>")
    assert len(page) < 20_000


def test_a_split_shows_its_tables(store):
    page = posprobe.decompose(store)._repr_html_()
    for words in ("overall: mean over layers", "by_layer", "share_residual", "relation"):
        assert words in page


def test_a_store_shows_its_data_and_their_meaning(store):
    page = store._repr_html_()
    assert "layer, sequence, query, head" in page
    assert "log-sum-exp of the query&#x27;s visible scores" in page
    assert "12 items in 36 sequences" in page


def test_a_model_shows_what_was_loaded(tmp_path):
    model = load_model(str(child.save_model(tmp_path / "m")), name=HOSTILE)
    page = model._repr_html_()
    assert "<script" not in page
    for words in ("LlamaForCausalLM", "2 of ", "float32", "a token of the text", "cpu"):
        assert words in page


def test_tables_are_short_and_numbers_are_rounded():
    table = pd.DataFrame({"x": np.arange(40) / 3, "y": [None] * 40})
    page = as_html("a", {"many": table, "none": table[:0]})
    assert page.count("<tr>") == 13
    assert "many (first 12 of 40 rows)" in page
    assert "none" not in page
    assert "<td>0.333</td><td></td>" in page
    assert "<td>nan</td>" not in as_html("a", {"t": pd.DataFrame({"x": [np.nan]})})
    assert fact_table({"n": 3}).to_numpy().tolist() == [["n", "3"]]


@pytest.mark.parametrize(
    "estimator", [PositionProbe(target="log_position"), GroupRidgeCV(), VariancePartition(["a"])]
)
def test_estimators_show_their_diagram_with_parameters(estimator):
    page = estimator_html_repr(estimator)
    for name in estimator.get_params():
        assert re.search(rf"\b{name}\b", page), name
    assert type(estimator).__name__ in page
