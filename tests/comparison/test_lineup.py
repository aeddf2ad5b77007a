"""Who is compared with whom, and what cannot be."""

import re

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner
from lineups import family, file_of, variants
from store_files import as_format_1, edit

from posprobe.channels import Variances
from posprobe.claims import hypothesis_claims
from posprobe.cli import main
from posprobe.comparison import compare_lineup, line_up
from posprobe.comparison.tables import share_rows
from posprobe.errors import DesignError
from posprobe.store import ActivationStore


def refuses(said, stores, **options):
    with pytest.raises(DesignError, match=said) as error:
        line_up(stores, **options)
    assert "\n" not in str(error.value)


# --- who is who ---


def test_models_are_sorted_by_architecture_in_any_order_of_files(models):
    there, back = line_up(models), line_up(models[::-1])
    assert there.architectures == back.architectures
    assert list(there.architectures) == ["ntk", "rope", "window"]
    assert there.architectures["rope"] == ["rope-0", "rope-1", "rope-2"]
    assert not there.paired
    assert there.notes == ()


def test_architectures_may_be_said(models):
    lineup = line_up(models, architectures={"rotary": "*rope-*", "rest": "*[tw]-[0-9]"} | {
        "rest": "zoo/[nw]*"})  # fmt: skip
    assert list(lineup.architectures) == ["rest", "rotary"]
    assert len(lineup.architectures["rest"]) == 6


def test_blocks_reach_tables_and_contrasts(models):
    blocks = {str(seed): f"*-{seed}" for seed in range(3)}
    found = compare_lineup(line_up(models, blocks=blocks))
    assert list(found.tables["models"]["block"]) == ["0", "1", "2"] * 3
    (trend, *_) = found.contrasts["V_R"]
    assert trend.interval.method == "t(2) over blocks"
    values = found.tables["models"].pivot(index="block", columns="architecture", values="V_R")
    assert trend.interval.estimate == pytest.approx((values["window"] - values["ntk"]).mean())
    assert "block" not in compare_lineup(line_up(models)).tables["models"]


def test_every_model_is_in_one_block(models):
    said = r"model 'ntk-2' \(ntk-2/shifted\.h5\) matches no --block: give each .* --block 0='\*-0'"
    refuses(said, models, blocks={"0": "*-0", "1": "*-1"})


@pytest.mark.parametrize(
    "change",
    [
        {"cut_sink": "all"},
        {"fixed_denominator": [[0, 0, 2.0]]},
        {"temperature": [[0, 0.5]]},
        {"window": 3},
        {"causal": False},
    ],
)
def test_a_change_of_attention_is_no_architecture(change, tmp_path):
    files = family(tmp_path, seeds=2, interventions=[{"causal": True, "cut_sink": None} | change])
    refuses(f"under an intervention \\({min(change)}\\), which does not define", files)


def test_natural_captures_of_other_lengths_are_refused(models, tmp_path):
    def natural(name, length, **fields):
        path = tmp_path / name / f"{length}.h5"
        path.parent.mkdir()
        header = dict(model=f"zoo/{name}", weights_digest=name, **fields)
        return synthetic.write(path, {"normalizer": np.zeros((3, 6, length, 2))}, **header)

    pair = [natural("rope-0", 8), natural("rope-1", 6)]
    refuses("has sequences of 6 tokens and rope-0/8.h5 of 8: make all natural", [*models, *pair])


def test_naturals_with_and_without_a_bos_are_noted(models, tmp_path):
    def natural(name, bos):
        path = tmp_path / name / "natural.h5"
        path.parent.mkdir()
        header = dict(model=f"zoo/{name}", weights_digest=name, stimulus={"bos_token": bos})
        return synthetic.write(path, {"normalizer": np.zeros((3, 6, 8, 2))}, **header)

    mixed = line_up([*models, natural("rope-0", None), natural("rope-1", 1)])
    assert any("natural captures of rope-0 begin with text" in note for note in mixed.notes)


def test_models_without_a_causal_mask_have_no_part_in_what_needs_one(tmp_path):
    found = compare_lineup(line_up(family(tmp_path, seeds=2, variant="no_causal")))
    assert not [c for c in hypothesis_claims(found) if c.statement.startswith("H3: the")]
    said = [note for note in found.lineup.notes if "without a causal mask" in note]
    assert len(said) == 1
    assert "rope-0 [no_causal]" in said[0]


def test_shares_of_a_total_that_may_be_zero_are_not_shown():
    def part(total, mask, residual, interplay):
        names = ("V_T", "V_M", "V_R", "C_MR")
        values = (total, mask, residual, interplay)
        found = {k: v * (1 - np.eye(3))[None, None] for k, v in zip(names, values, strict=True)}
        return Variances(found, np.empty((0, 3)))

    apart = [part(0.06, 0.03, 0.01, 0.01), part(-0.05, 0.01, 0.02, -0.04)]
    assert np.isnan([row["estimate"] for row in share_rows(apart, None, 0.95)]).all()
    alike = [part(0.06, 0.03, 0.01, 0.01), part(0.05, 0.03, 0.0, 0.01)] * 2
    rows = share_rows(alike, None, 0.95)
    assert [row["estimate"] for row in rows] == pytest.approx([8 / 11, 3 / 11])
    assert all(row["low_models"] < row["estimate"] < row["high_models"] for row in rows)


def test_an_architecture_is_given_once(models, tmp_path):
    twice = ["--architecture", "a=*0*", "--architecture", "a=*1*"]
    files = [str(store.path) for store in models]
    done = CliRunner().invoke(main, ["compare", "-o", str(tmp_path / "out"), *twice, *files])
    assert done.exit_code != 0
    assert "a is given twice: write one PATTERN" in done.output


def test_a_model_without_an_architecture_is_refused(models):
    said = r"model 'rope-0' \(rope-0/shifted\.h5\) matches no --architecture: give each model one"
    refuses(said, models[3:], architectures={"w": "*window*"})
    refuses(r"matches a and b: give", models, architectures={"a": "*", "b": "*ntk*"})


def test_names_are_as_long_as_they_must_be(tmp_path):
    stores = [
        file_of(tmp_path / f"{k}.h5", k, model=f"{k}/model-0", weights_digest=k) for k in "ab"
    ]
    assert [m.name for m in line_up(stores).members] == ["a/model-0", "b/model-0"]
    assert list(line_up(stores).architectures) == ["model"]


def test_a_variant_of_every_model_belongs_to_the_architecture(tmp_path):
    stores = [
        file_of(tmp_path / f"{k}.h5", f"rope-{k}", variant=variant)
        for k, variant in enumerate(["standard", "ntk(8)"])
    ]
    lineup = line_up(stores)
    assert lineup.architectures == {"rope": ["rope-0"], "rope [ntk(8)]": ["rope-1 [ntk(8)]"]}


def test_variants_of_one_checkpoint_are_paired_and_the_standard_one_is_first(tmp_path):
    lineup = line_up(variants(tmp_path)[::-1])
    assert lineup.paired
    assert [m.architecture for m in lineup.members] == ["standard", "ntk(8)", "window(3)"]


def test_variants_take_no_other_architecture_and_no_blocks(tmp_path):
    refuses("all files are of one model's weights", variants(tmp_path), architectures={"a": "*"})
    refuses("leave --block out", variants(tmp_path), blocks={"a": "*"})


# --- what is refused, what is handled ---


def test_one_model_is_no_comparison(models):
    refuses("the files are of 1 model .* needs two; for one model use: posprobe an", models[:1])
    refuses("the files are of 0 model", [])


def test_refuses_a_model_given_twice(models, tmp_path):
    twin = file_of(tmp_path / "copy" / "shifted.h5", "rope-0")
    said = r"model 'rope-0' is given twice \(rope-0/shifted\.h5, copy/shifted\.h5\): give each of"
    refuses(said, [*models, twin])


@pytest.mark.parametrize("variant", ["standard", "ntk(8)"])
def test_refuses_two_models_of_one_name(models, tmp_path, variant):
    twin = file_of(tmp_path / "b.h5", "rope-0", weights_digest="other", variant=variant)
    said = "two sets of weights named 'zoo/rope-0': capture a model with one --model-dt"
    refuses(said, [*models, twin])


def test_refuses_weights_that_some_models_share(models, tmp_path):
    twin = file_of(tmp_path / "b.h5", "rope-0", variant="ntk(8)")
    said = r"model 'zoo/rope-0' is given as standard and ntk\(8\) together with other models, so"
    refuses(said, [*models, twin])


def test_refuses_a_model_without_a_shifted_capture(models, tmp_path):
    arrays = {"normalizer": np.zeros((1, 2, 3, 1))}
    store = synthetic.write(tmp_path / "natural.h5", arrays, weights_digest="x", model="zoo/ntk-9")
    refuses("model 'ntk-9' has no shifted capture among its files", [*models, store])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            dict(prefixes=(1, 5, 9)),
            "has prefixes 1, 5, 9 and ntk-0/shifted.h5 1, 4, 7: capture all",
        ),
        (dict(offsets=(2,)), "has offsets 2 and ntk-0/shifted.h5 1: capture all models with the"),
        (dict(stimulus={"bos_token": None}), "has text at position 0 and ntk-0/shifted.h5 a BOS"),
        (dict(first_item=6), "the models have 2 items in common, and intervals need 3"),
    ],
    ids=["prefixes", "offsets", "first token", "items"],
)
def test_refuses_files_of_different_designs(fields, said, models, tmp_path):
    refuses(re.escape(said), [*models, file_of(tmp_path / "b.h5", "rope-9", **fields)])


def test_different_tokens_are_refused_unless_allowed(models, tmp_path):
    tokens = synthetic.shifted_index(8, (1, 4, 7), 4)["tokens"]
    tokens = np.where(tokens < 0, tokens, 2 * tokens)
    other = file_of(tmp_path / "b.h5", "gemma", index={"tokens": tokens})
    said = r"/b\.h5 and gemma.*|/shifted\.h5 and .*/b\.h5 contain different tokens: use one text"
    refuses(said, [*models, other])
    lineup = line_up([*models, other], different_tokens=True)
    assert not lineup.same_tokens
    assert "models saw different tokens" in lineup.notes[0]
    table = compare_lineup(lineup).tables["architectures"].set_index(["architecture", "quantity"])
    assert np.isnan(table.loc[("rope", "V_R"), "low_items"])  # items of several texts are no sample
    assert table.loc[("gemma", "V_R"), "low_items"] > 0


def test_unequal_numbers_of_items_use_those_in_common(models, tmp_path):
    lineup = line_up([*models[:8], file_of(tmp_path / "b.h5", "window-2", n=6)])
    assert lineup.items.tolist() == list(range(6))
    said = "the files have 6 to 8 items: the 6 that all of them have are compared"
    assert lineup.notes == (said,)
    assert (compare_lineup(lineup).tables["models"]["items"] == 6).all()


def test_files_of_format_1_are_compared_and_named(models, tmp_path):
    old = ActivationStore(as_format_1(file_of(tmp_path / "b.h5", "rope-9").path))
    said = "files of rope-9 have format 1, which does not show damage to data"
    assert line_up([*models, old]).notes == (said,)


def test_items_that_repeat_others_are_noted(models, tmp_path):
    def repeat(file):
        file["tokens"][1::8] = file["tokens"][0::8]

    path = as_format_1(file_of(tmp_path / "b.h5", "rope-9").path)
    edit(path, repeat)
    notes = line_up([*models, ActivationStore(path)], different_tokens=True).notes
    said = "1 of 8 items repeats another token for token (0 = 1), and intervals take them as"
    assert [said in note for note in notes].count(True) == 1


def test_a_window_that_hides_offsets_or_key_0_is_noted(models, tmp_path):
    hidden = file_of(tmp_path / "b.h5", "tight-0", layer_window=(0, 1, 0))
    notes = line_up([*models, hidden]).notes
    assert "tight-0: its window of 1 tokens hides some of the offsets 1" in notes[0]
    assert notes[1].startswith("late queries of tight do not see key 0 through a sliding window")


# --- models in several conditions ---

NATIVE = {"bos": "native", "bos_token": None, "corpus": "prose"}
FORCED = {"bos": "force", "bos_token": 1, "corpus": "prose"}


def test_the_first_condition_that_all_models_have_is_compared(tmp_path):
    # a model whose tokenizer puts a BOS has no other condition
    files = [
        file_of(tmp_path / "a" / "shifted.h5", "a-0", stimulus=NATIVE),
        file_of(tmp_path / "a" / "shifted_bos.h5", "a-0", stimulus=FORCED),
        file_of(tmp_path / "b" / "shifted.h5", "b-0", stimulus=FORCED | {"bos": "native"}),
    ]
    for order in (files, files[::-1]):
        lineup = line_up(order)
        assert {m.name: m.shifted.path.name for m in lineup.members} == {
            "a-0": "shifted_bos.h5",
            "b-0": "shifted.h5",
        }
        assert len(lineup.stores()) == 2


def test_models_without_a_common_condition_are_refused(tmp_path):
    files = [
        file_of(tmp_path / "a" / "shifted.h5", "a-0", stimulus=NATIVE),
        file_of(tmp_path / "b" / "shifted.h5", "b-0", stimulus=FORCED),
    ]
    refuses("at position 0 and .*: capture all models with the same --bos", files)
