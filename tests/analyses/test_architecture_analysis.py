"""The summary of analysis 2: it says what the comparisons found, and where they disagree."""

import pandas as pd
import pytest
import scripts
from lineups import TRUTH, family, variants

from posprobe.workflows.compare import compare


@pytest.fixture(scope="module")
def script():
    return scripts.load("02_architectures")


def curves(growth=6e-5):
    """Of the heads of rope-1 the second grows a sink, and the first loses a little of its own."""
    rows = [
        dict(architecture="rope", model=f"rope-{k}", step=step, held_out_loss=5 - step / 1000,
             learning_rate=6e-4, early_max=0.5, early_L0H0=0.5 - 1e-5 * step,
             early_L0H1=0.1 + k * growth * step)
        for k in range(2)
        for step in (1000, 2000, 3000)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def report(tmp_path_factory, script):
    folder = tmp_path_factory.mktemp("analysis")
    reverse = {"standard": TRUTH["rope"], "ntk(8)": TRUTH["window"], "window(3)": TRUTH["ntk"]}
    parts = {"variants": variants(folder / "v", reverse), "family": family(folder / "f", seeds=2)}
    for name, stores in parts.items():
        compare([store.path for store in stores], folder / "out" / name, progress=False)
    (folder / "out" / "variants" / script.NOT_RUN).write_text('{"yarn(8)": "inert here"}')
    return folder / "out"


def test_the_summary_says_where_comparisons_agree_and_where_not(script, report):
    lines = script.summarise(report, curves()).splitlines()
    rows = {line.split(":")[0]: line for line in lines if line.startswith("| H")}
    text = " ".join(" ".join(lines).split())
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120
    assert rows["| H1"].endswith("| contradicted | supported | disagree |")
    assert rows["| H3"].endswith("| supported | supported | agree |")
    assert "not run: yarn(8): inert here" in text
    assert "Variants are paired over items; architectures are not tested." in text
    assert "Primary test, V_R at mean depth: F(2, 3) = " in text
    assert "Without equal variances (Welch): F(2, " in text
    assert "(learning rate at the end 6.0e−4)" in text
    assert "changed by more than 0.05 in 1 of 2 models" in text
    assert "when training ended: rope-1 +0.06." in text
    assert "nan" not in text.lower()


def test_sinks_are_stable_where_no_head_changed(script, tmp_path):
    (tmp_path / "tables").mkdir()
    pd.DataFrame({"model": ["rope-1"]}).to_csv(tmp_path / "tables" / "models.csv")
    text = script.stability_sentence(curves(growth=-2e-5), tmp_path)
    assert "in 0 of 1 models (at most by 0.02), so their attention to key 0 was stable" in text


def test_an_undecided_hypothesis_is_no_disagreement(script):
    def part(verdict):
        answer = dict(hypothesis="H1", statement="So it is.", value="V_R", verdict=verdict)
        return {"answers": [answer]}

    said = {
        other: script.agreement({"variants": part("supported"), "family": part(other)})[-1]
        for other in ("supported", "contradicted", "inconclusive", "not_applicable")
    }
    ends = [line.split("|")[-2].strip() for line in said.values()]
    assert ends == ["agree", "disagree", "undecided", "undecided"]


def test_the_table_has_a_row_for_every_architecture(script, report):
    lines = script.contribution_table(report / "family")
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(TRUTH)
    assert all("[" in line for line in lines[2:])


def test_training_curves_are_drawn(script, tmp_path):
    script.draw_training(curves(), tmp_path / "figures" / "training.svg")
    text = (tmp_path / "figures" / "training.svg").read_text()
    assert text.count(">training step<") == 2
    assert text.count(">rope<") == 1


def test_training_curves_of_the_family_have_what_is_drawn(script):
    table = script.training_curves()
    assert {"model", "architecture", "step", "held_out_loss", "early_max"} <= set(table.columns)
    assert table["model"].nunique() >= 13


def test_replacement_counts_what_is_removed_and_what_grows(script, tmp_path):
    rows = [
        ("rope", "rope-0", True, 0.8, 0.7, 0.9),
        ("rope", "rope-1", True, 0.1, -0.1, 0.3),
        ("window", "window-0", True, -4.0, -5.0, -3.0),
        ("window", "window-0", False, 0.5, 0.4, 0.6),
    ]
    columns = ["architecture", "model", "primary", "fraction_removed", "low", "high"]
    (tmp_path / "tables").mkdir()
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "tables" / "replacement.csv", index=False)
    (text,) = script.replacement_sentences(tmp_path)
    assert "rope 0.1 to 0.8, window −4 to −4" in text
    assert "V_R shrinks in 1 of 3 models and grows in 1" in text
