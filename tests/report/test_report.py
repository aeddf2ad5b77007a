"""The report: everything found is in it, in words, and nothing comes from outside."""

import dataclasses
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.figure import Figure

from posprobe.analysis import Analysis, Files, analyze_files, sort_files
from posprobe.claims import make_claims
from posprobe.errors import StoreError
from posprobe.intervals import Inference
from posprobe.report import drawings as report_module
from posprobe.report import write_report
from posprobe.report.claim_rows import claim_interval, claim_rows, p_values, questions
from posprobe.report.facts import commands, kind, model_facts
from posprobe.report.findings import heads
from posprobe.report.glossary import GLOSSARY, LIMITS
from posprobe.report.head_map import head_map
from posprobe.report.pages import THEMED
from posprobe.report.sections import SECTIONS
from posprobe.report.study_page import MAPPED as MAPPED_FIGURES
from posprobe.report.summary import opening, summary
from posprobe.report.words import VERDICTS, bounds, number, percent, removed

VALUES = ("V_T", "V_M", "V_R", "C_MR", "share_mask", "share_residual")
CUT = dict(
    V_R_native=0.1, V_R_cut=0.05, n=8, n_heads_measured=2, attention_native=0.5, attention_left=0.0
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return synthetic.study_files(tmp_path_factory.mktemp("study"), np.random.default_rng(0))


@pytest.fixture(scope="module")
def analysis(stores):
    found = analyze_files(sort_files(stores.values()))
    found.tables["cut_sink"] = cut_sink()
    found.tables.update(masks())
    found.tables.update(conditions())
    found.tables["bands"] = bands()
    forward = dict(layers="0", positions="all", fraction_removed=0.4, low=0.1, high=0.6)
    forward |= dict(V_R_native=0.2, caveat="Mind.")
    found.tables["fixed_forward"] = pd.DataFrame([forward])
    return found


def bands():
    rows = [
        dict(layer=layer, channel=channel, band=band, share=share, status=status)
        | dict(share_low=share - 0.125, share_high=share + 0.125)
        for layer in ("all", 0)
        for channel, status in (("T", "ok"), ("M", "undefined"), ("R", "ok"), ("S", "ok"))
        for band, share in (("turns > 1", 0.25), ("turns < 1", 0.75))
    ]
    return pd.DataFrame(rows)


def conditions():
    rows = [
        dict(condition=f"{first} at position 0", position0=first, text="prose", length=24, n=8)
        | {f"{name}{end}": value for name in VALUES for end, value in limits}
        | dict(native=first == "text", relation=relation, status="ok")
        for first, relation, limits in (
            ("text", "opposed", (("", 0.2), ("_low", 0.1), ("_high", 0.3))),
            ("BOS", "reinforcing", (("", 0.1), ("_low", -0.1), ("_high", 0.3))),
        )
    ]
    removed = dict(condition="BOS at position 0", fraction_removed=0.4, low=0.3, high=0.5, n=8)
    return {"conditions": pd.DataFrame(rows), "condition_replacement": pd.DataFrame([removed])}


def masks():
    kinds = [("no causal mask", "all"), ("window of 9 tokens", "behind the window")]
    rows = [
        dict(mask=mask, positions=positions, quantity=quantity, native=0.25, changed=0.125)
        | dict(changed_low=0.1, changed_high=0.15, largest_M=0.0, mismatch=1e-6, n=8)
        for mask, positions in kinds
        for quantity in ("V_T", "V_M", "V_R")
    ]
    layers = [
        dict(mask=mask, layer=layer, quantity="V_R", estimate=0.2, low=0.1, high=0.3)
        for mask in ("native", "window of 9 tokens")
        for layer in range(2)
    ]
    ends = {
        f"r2_{name}{end}": 0.5 for name in ("native", "masked") for end in ("", "_low", "_high")
    }
    probes = pd.DataFrame([ends | dict(layer=0, r2_masked=0.25)])
    return {"masks": pd.DataFrame(rows), "mask_layers": pd.DataFrame(layers), "mask_probes": probes}


def cut_sink():
    rows = [
        dict(heads="all", n_heads_cut=4, measured="without key 0", low=-7.0, high=-3.0),
        dict(heads="sink-reading", n_heads_cut=2, measured="heads left whole", low=0.2, high=0.6),
    ]
    values = (-5.0, 0.4)
    return pd.DataFrame(
        [
            row | CUT | dict(positions="all", up_to=20, fraction_removed=value, V_R_native=0.2)
            for row, value in zip(rows, values, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def claims(analysis):
    return make_claims(analysis)


@pytest.fixture(scope="module")
def folder(analysis, claims, tmp_path_factory):
    return write_report(analysis, claims, tmp_path_factory.mktemp("report") / "new").parent


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def no_figures(monkeypatch):
    """Most of the time goes into figures, which have tests of their own."""
    monkeypatch.setattr(report_module, "draw", lambda name, tables: None)


def plain(page):
    """Text of a page as it is read."""
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def render(analysis, tmp_path, claims=None):
    path = write_report(analysis, make_claims(analysis) if claims is None else claims, tmp_path)
    return plain(path.read_text(encoding="utf-8"))


def squeezed(text):
    return " ".join(text.split())


def only(analysis, *tables, **files):
    kept = {name: analysis.tables[name] for name in (*tables, "checks")}
    return Analysis(Files(**files), kept, analysis.intervals, analysis.inference)


def with_row(analysis, name, **values):
    table = analysis.tables[name].reset_index(drop=True).copy()
    for column, value in values.items():
        table.loc[0, column] = value
    return dataclasses.replace(analysis, tables=analysis.tables | {name: table})


# --- what is in it ---


def test_a_report_is_a_page_claims_tables_and_figures(folder, analysis, page):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.csv" for name in (*analysis.tables, "inference")}
    figures = {name for name in names if name.startswith("figures/")}
    assert names == {"report.html", "claims.json"} | tables | figures
    drawn = {Path(name).stem for name in figures}
    assert figures == {f"figures/{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert page.count("<svg") == len(drawn - {*MAPPED_FIGURES}) > 20
    for name, table in analysis.tables.items():
        assert list(pd.read_csv(folder / "tables" / f"{name}.csv").columns) == list(table.columns)


def test_every_claim_is_there_with_verdict_interval_and_protocol(page, claims):
    for claim in claims:
        (row,) = re.findall(rf'<tr id="claim-{claim.id}">.*?</tr>', page, re.DOTALL)
        text = plain(row)
        assert squeezed(claim.statement) in text
        assert squeezed(claim.protocol) in text
        assert f'"verdict {claim.verdict_adjusted}">{VERDICTS[claim.verdict_adjusted]}<' in row
        assert claim_interval(claim) in text
        if claim.p_value is None:
            assert claim.p_note in text
        else:
            assert p_values(claim) in text
        assert (" Interval: " in text) == (claim.estimate is not None)
        if claim.n is not None:
            assert f">{claim.n}<" in row
        if claim.reference is not None:
            assert f">{claim.reference:g}<" in row


def test_a_verdict_that_hangs_on_adjustment_says_so(claims):
    tested = [claim for claim in claims if claim.p_adjusted is not None]
    lost = dataclasses.replace(tested[0], p_adjusted=0.06, verdict_adjusted="inconclusive")
    row = claim_rows([lost, *tested[1:]])[0]
    n = sum(claim.family == lost.family for claim in tested)
    assert row["verdict"] == "inconclusive"
    assert row["p"].endswith("(0.06)")
    assert row["hangs"] == (
        f"Supported by its own interval, not after adjustment for the {n} tests of this question."
    )
    assert not claim_rows(tested)[0]["hangs"]


def test_claims_stand_under_the_question_that_they_answer(page, claims):
    for question in questions(claims):
        start = page.index(f'id="{question["name"]}-claims"')
        rest = page[start:]
        part = rest[: rest.find('<details class="question"')]
        assert squeezed(question["title"]) in plain(part)
        ids = [claim.id for claim in claims if claim.family == question["name"]]
        assert re.findall(r'<tr id="claim-(\w+)">', part) == ids
        tally = [words for _, words in question["tally"]]
        counts = pd.Series([c.verdict_adjusted for c in claims if c.id in ids]).value_counts()
        assert sorted(tally) == sorted(f"{n} {VERDICTS[kind]}" for kind, n in counts.items())


def test_a_contradicted_claim_says_first_what_was_found_instead(claims):
    rows = claim_rows(
        dataclasses.replace(claim, verdict="contradicted", verdict_adjusted="contradicted")
        for claim in claims
        if claim.estimate is not None
    )
    assert len(rows) > 15
    found = {row["id"]: row["found"] for row in rows}
    assert all(found.values())
    assert found["channels_add"] == "the channels oppose each other"
    assert found["bos_replacement"] == "more than that is removed"
    (opposed,) = [claim for claim in claims if claim.id == "channels_add"]
    (question,) = questions([opposed])
    assert question["instead"] == "the channels oppose each other"


def test_what_an_untrained_model_gives_too_is_marked_where_it_is_supported(claims):
    marked = {row["id"] for row in claim_rows(claims) if row["untrained"]}
    assert {"mask_channel", "mask_isolated"} <= marked
    assert not {"residual_channel", "channels_add", "bos_replacement"} & marked


def test_claims_as_a_file_are_the_claims(folder, claims):
    assert json.loads((folder / "claims.json").read_text()) == [c.asdict() for c in claims]


def test_every_section_has_its_finding_and_its_protocol_beside_the_figures(page, analysis):
    there = [section for section in SECTIONS if section.needs in analysis.tables]
    assert len(there) > 10
    for section in there:
        (part,) = re.findall(rf'<h3 id="{section.name}">.*?</section>', page, re.DOTALL)
        text = plain(part)
        assert squeezed(section.finding(analysis)) in text
        (protocol,) = re.findall(r'<details class="protocol">.*?</details>', part, re.DOTALL)
        protocol = plain(protocol)
        for term in ("What is estimated", "What counts once", "How sure", "How many"):
            assert f" {term}" in protocol
        assert squeezed(section.estimand) in protocol
        assert "<svg" in part or section.name == "position"  # its pictures open the page
        assert part.count("<svg") == part.count("<figcaption>")


def test_findings_are_computed_from_the_tables(analysis):
    table = analysis.tables["position_effects"]
    row = table[(table["stimulus"] == "shifted") & (table["layer"] == "all")].iloc[0]
    position = next(section for section in SECTIONS if section.name == "position")
    assert f"{row['T']:.2f}" in position.finding(analysis)
    changed = with_row(analysis, "fixed_forward", layers="0, 7", low=np.nan, high=np.nan)
    denominator = next(section for section in SECTIONS if section.name == "denominator")
    text = denominator.finding(changed)
    assert "in layers 0, 7, removes 40% of V_R (interval unbounded). Mind." in text
    masked = next(section for section in SECTIONS if section.name == "masks").finding(analysis)
    assert masked.startswith(
        "No causal mask: largest |M| 0 nats, V_T 0.125 (0.100 to 0.150) nats² (natively 0.250). "
        "Window of 9 tokens, behind the window: largest"
    )
    assert "with R² 0.50 under the mask and 0.25 without it" in masked
    cuts = next(section for section in SECTIONS if section.name == "cuts").finding(analysis)
    assert cuts.startswith(
        "Hiding key 0 from sink-reading heads (2) removes 40% of V_R (20% to 60%), measured in the "
        "heads left whole."
    )
    assert "V_R grows 6.0-fold (4.0 to 8.0)" in cuts


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.0, "Position 0 is bit-identical at every depth to a run on its token alone."),
        (2e-7, "Position 0 differs from a run on its token alone by at most 2.0e−7 of its norm"),
    ],
)
def test_position_0_is_called_identical_only_where_it_is(analysis, difference, words):
    table = analysis.tables["closed_system"].assign(difference=difference)
    changed = dataclasses.replace(analysis, tables=analysis.tables | {"closed_system": table})
    section = next(section for section in SECTIONS if section.name == "position0")
    assert section.finding(changed).startswith(words)


def test_the_n_of_a_protocol_counts_items(page, stores):
    assert "8 windows of 4 tokens at positions 1, 6, 12, 20" in plain(page)
    assert "8 sequences of 24 tokens" in plain(page)


def test_glossary_limits_and_commands_are_there(page):
    text = plain(page)
    for term, meaning in GLOSSARY.items():
        assert squeezed(f"{term} {meaning}") in text
    for limit in LIMITS:
        assert squeezed(limit) in text
    assert "posprobe audit synthetic" in text
    assert "posprobe analyze *.h5 -o REPORT" in text


def test_manipulation_checks_show_every_file(page, analysis):
    (table,) = re.findall(r'<h2 id="checks">.*?</table>', page, re.DOTALL)
    for file in analysis.tables["checks"]["file"]:
        assert f"<td>{file}</td>" in table


def test_figures_have_the_colours_of_the_page_in_the_dark_too(page):
    drawn = "".join(re.findall(r"<svg\b.*?</svg>", page, re.DOTALL))
    assert "var(--mask)" in drawn
    assert not [colour for colour in THEMED if colour in drawn]
    light, dark = page.split("@media screen and (prefers-color-scheme: dark)")[:2]
    for name in THEMED.values():
        assert f"--{name}: #" in light
        assert f"--{name}: #" in dark[: dark.index("* {")]


def test_the_map_has_every_head_with_its_numbers_and_what_it_is(analysis, page):
    heads_ = analysis.tables["channels_by_head"]
    heads_ = heads_[heads_["stimulus"] == "shifted"]
    made = head_map(analysis)
    cells = [cell for row in made["rows"] for cell in row["cells"]]
    assert len(cells) == len(heads_) == page.count("<i>Layer ")
    first = heads_.iloc[0]
    (cell,) = [cell for cell in cells if cell["text"].startswith("Layer 0, head 0: ")]
    assert f"V_M {number(float(first['V_M']))}" in cell["text"]
    largest = max(cells, key=lambda cell: int(re.search(r"--m:(\d+)%", cell["style"])[1]))
    assert f"V_M {number(float(heads_['V_M'].max()))}" in largest["text"]
    kept = {one["key"]: one["n"] for one in made["filters"]}
    for key, n in kept.items():
        assert sum(key in cell["kept"].split() for cell in cells) == n
    clear = (heads_["V_R_p_adjusted"] < 0.05) & (heads_["V_R_high"] >= 1e-4)
    assert kept["c"] == clear.sum()


def test_a_model_of_too_many_heads_has_no_map(analysis, monkeypatch):
    monkeypatch.setattr("posprobe.report.head_map.MOST_HEADS", 1)
    assert head_map(analysis) is None
    assert head_map(dataclasses.replace(analysis, tables={})) is None


# --- in words ---


def test_the_summary_says_what_carries_position_and_whether_the_channels_oppose(analysis, claims):
    text = summary(analysis, claims)
    assert "depends on absolute position, with content held fixed" in text
    assert "Both channels carry it" in text
    assert "The two channels oppose each other" in text
    assert "95% intervals over 8 items" in text
    counts = pd.Series([c.verdict_adjusted for c in claims]).value_counts()
    assert f"{counts['supported']} supported" in text
    lost = [dataclasses.replace(claims[0], verdict_adjusted="inconclusive"), *claims[1:]]
    text = summary(analysis, lost)
    assert f"{counts['supported'] - 1} supported" in text
    assert "(1 more by their own intervals alone)" in text


def small(name, size=1e-6):
    return {name: size, f"{name}_low": size / 2, f"{name}_high": 2 * size}


def test_the_page_opens_with_three_short_sentences(analysis, page):
    sentences = opening(analysis)
    assert len(sentences) == 3
    assert all(len(sentence) < 200 for sentence in sentences)
    start = plain(page).index(squeezed(" ".join(sentences)))
    assert start < plain(page).index("Does attention tell absolute position")
    assert page.index('aria-label="What adds up') < page.index("<nav")
    (line,) = re.findall(r'id="channels-claims".*?<p class="line">(.*?)</p>', page, re.DOTALL)
    assert html.unescape(line) == sentences[1]


def test_effects_below_the_smallest_are_not_spoken_of(analysis):
    nothing = with_row(analysis, "channels", **small("V_T"))
    assert opening(nothing)[0].startswith("There is little to see")
    section = {one.name: one for one in SECTIONS}
    assert "not worth dividing into channels" in section["channels"].finding(nothing)
    mask_only = with_row(analysis, "channels", **small("V_R"))
    assert opening(mask_only)[1].startswith("That is the mask alone")
    assert "V_R is too small to speak of" in section["channels"].finding(mask_only)
    table = analysis.tables["replacement"].assign(V_R_native=1e-6)
    bare = dataclasses.replace(analysis, tables=analysis.tables | {"replacement": table})
    assert section["replacement"].finding(bare).startswith("There is nothing to remove.")
    (claim,) = [one for one in make_claims(bare) if one.id == "bos_replacement"]
    assert claim.verdict == "not_applicable"
    assert claim.protocol.startswith("nothing to remove: natively V_R is 1.0e-06")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(relation="reinforcing"), "The two channels reinforce each other."),
        (
            dict(relation="not distinguishable"),
            "do not tell whether the two channels oppose",
        ),
        (dict(V_T_low=-0.1), "no evidence that attention in this model depends on absolute"),
        (dict(V_R_low=-0.1), "Only the causal mask is found to carry it"),
        (dict(V_M_low=-0.1), "Only the residual stream is found to carry it"),
        (dict(V_M_low=-0.1, V_R_low=-0.1), "Neither channel is found to carry it"),
    ],
)
def test_the_summary_follows_the_table(analysis, claims, values, words):
    assert words in summary(with_row(analysis, "channels", **values), claims)


def test_a_direction_is_told_only_where_it_is_known(analysis, claims):
    table = analysis.tables["position_effects"].reset_index(drop=True).copy()
    first = table[(table["stimulus"] == "shifted") & (table["layer"] == "all")].index[0]
    seen = {}
    for name, low, value, high in (("up", 1, 2, 3), ("down", -3, -2, -1), ("none", -1, 2, 3)):
        for part in "TMR":
            table.loc[first, [f"{part}_low", part, f"{part}_high"]] = low, value, high
        changed = analysis.tables | {"position_effects": table}
        seen[name] = summary(dataclasses.replace(analysis, tables=changed), claims)
    assert "raises log attention at a fixed distance by 2.0 (1.0 to 3.0) nats" in seen["up"]
    assert "the residual stream adds 2.0 (1.0 to 3.0) nats" in seen["up"]
    assert "lowers log attention at a fixed distance by 2.0 (1.0 to 3.0) nats" in seen["down"]
    assert "the residual stream takes away 2.0 (1.0 to 3.0) nats" in seen["down"]
    assert "neither clearly raises nor clearly lowers" in seen["none"]
    assert "the residual stream changes it by 2.0 (−1.0 to 3.0) nats" in seen["none"]


@pytest.mark.parametrize(("mask", "residual", "said"), [(1.2, -0.2, True), (0.8, 0.2, False)])
def test_a_negative_share_is_explained(analysis, claims, mask, residual, said):
    shares = dict(status="ok", share_mask=mask, share_residual=residual)
    text = summary(with_row(analysis, "channels", **shares), claims)
    assert ("only where −C exceeds the channel's own variance" in text) is said


@pytest.mark.usefixtures("no_figures")
def test_undefined_is_never_a_number(analysis, tmp_path):
    shares = [name for name in analysis.tables["channels"] if name.startswith("share")]
    values = {"status": "undefined"} | dict.fromkeys(shares, np.nan)
    changed = with_row(analysis, "channels", **values)
    text = render(changed, tmp_path)
    assert "Shares are undefined because V_T is not distinguishable from 0." in text
    assert "share of the variance" not in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_no_page_shows_what_is_not_a_number(page):
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page, re.DOTALL)
    assert len(cells) > 100
    assert not {cell.strip().lower() for cell in cells} & {"nan", "nat", "inf", "-inf", "<na>"}
    assert not re.search(r"\b(nan|inf)\b", plain(page))


@pytest.mark.usefixtures("no_figures")
def test_unbounded_is_said_in_words(analysis, tmp_path):
    table = analysis.tables["replacement"].assign(low=np.nan, high=np.nan)
    unbounded = dataclasses.replace(analysis.intervals["replacement"], low=None, high=None)
    changed = dataclasses.replace(
        analysis,
        tables=analysis.tables | {"replacement": table},
        intervals=analysis.intervals | {"replacement": unbounded},
    )
    claims = make_claims(changed)
    text = render(changed, tmp_path, claims)
    (claim,) = [claim for claim in claims if claim.id == "bos_replacement"]
    assert f"{number(claim.estimate)} (interval unbounded)" in text
    assert "removes an unknown part of the residual channel (interval unbounded)" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.123"), (-0.5, "−0.5"), (1.26e-6, "1.3e−6"), (0.0, "0"), (100000.0, "100,000"),
        (float("nan"), ""), (None, ""), (7, "7"), ("native", "native"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_intervals_have_the_digits_that_their_width_allows():
    assert bounds(0.0272, 0.0446) == "0.027 to 0.045"
    assert bounds(-149.4, -14.3) == "−149 to −14"
    assert bounds(-1e-6, 3.5e-6) == "−1.0e−6 to 3.5e−6"
    assert bounds(-0.21, 0.14, percents=True) == "−21% to 14%"
    assert bounds(None, None) == bounds(np.nan, np.nan) == "interval unbounded"
    assert percent(-0.001) == "0%"
    row = pd.Series(dict(fraction_removed=-0.37, low=-0.51, high=-0.25))
    assert removed(row) == "nothing: V_R grows by 37% (25% to 51%)"
    row = pd.Series(dict(fraction_removed=-9.0, low=-11.0, high=-7.0))
    assert removed(row) == "nothing: V_R grows 10.0-fold (8.0 to 12.0)"
    row = pd.Series(dict(fraction_removed=-9.0, low=np.nan, high=np.nan))
    assert removed(row) == "nothing: V_R grows 10.0-fold (interval unbounded)"


def test_the_page_says_the_level_that_was_asked_for(analysis, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "draw", lambda name, tables: Figure())
    monkeypatch.setattr(report_module, "to_svg", lambda figure, name: "<svg></svg>")
    monkeypatch.setattr(report_module, "to_png", lambda figure: b"")
    asked = dataclasses.replace(analysis, inference=Inference(level=0.8))
    text = render(asked, tmp_path)
    assert "found [80% interval]" in text
    assert text.count("80%") > 10  # in captions and sections too
    assert "95%" not in text


def test_heads_are_counted_at_the_level_that_was_asked_for(analysis):
    table = analysis.tables["channels_by_head"].assign(V_T_p_adjusted=0.1, V_R_p_adjusted=0.3)
    changed = dataclasses.replace(analysis, tables=analysis.tables | {"channels_by_head": table})
    unsure = dataclasses.replace(changed, inference=Inference(level=0.8))
    n = len(table[table["stimulus"] == "shifted"])
    assert f"position in 0 of {n} heads, and 0 have" in heads(changed)
    assert f"position in {n} of {n} heads, and 0 have" in heads(unsure)
    assert "(p < 0.2, adjusted" in heads(unsure)


# --- which model ---


@pytest.mark.parametrize(
    ("quantization", "width", "words"),
    [
        ("Q4_1", 576, "4-bit quantised small"),
        ("Q8_0", 8192, "8-bit quantised"),
        ("none", 576, "small"),
        ("IQ3_XS", 8192, "3-bit quantised"),
        ("BF16", 8192, ""),
        ("none", 8192, ""),
    ],
)
def test_quantised_and_small_models_are_called_so(stores, quantization, width, words):
    header = dataclasses.replace(
        stores["natural"].header,
        n_layers=30,
        width=width,
        layer_window=(0,) * 30,
        residual_layers=None,
        config={"posprobe_quantization": quantization},
    )
    assert kind(header) == words


def test_the_page_says_what_the_model_is(page, stores):
    text = plain(page)
    assert "This is a small model, and other models may behave differently." in text
    assert f"weights, SHA-256 {stores['natural'].header.weights_digest}" in text


def test_commands_make_the_same_files_again(analysis, stores):
    audit, _ = commands(analysis)
    assert audit == "posprobe audit made-up --n 8 --length 24 --seed 0".replace(
        "made-up", stores["natural"].model
    )
    single = only(analysis, "repeated", repeated=stores["repeated"])
    (capture, _) = commands(single)
    assert "--design repeated" in capture
    assert "-o repeated.h5" in capture


def test_commands_have_the_name_and_the_settings_that_were_given(tmp_path):
    store = synthetic.write(
        tmp_path / "a.h5",
        {"normalizer": np.zeros((1, 2, 4, 1))},
        model="Mine",
        options={"model": {"model": "org/model", "name": "Mine"}},
    )
    inference = Inference(level=0.9, n_resamples=500, seed=3)
    capture, analyze = commands(Analysis(Files(natural=store), {}, {}, inference=inference))
    assert capture.startswith("posprobe capture org/model --name Mine -o a.h5")
    assert analyze == "posprobe analyze *.h5 -o REPORT --level 0.9 --resamples 500 --seed 3"


def test_level_and_samples_are_on_the_page_and_among_the_tables(page, folder, analysis):
    settings = pd.read_csv(folder / "tables" / "inference.csv", index_col="setting")["value"]
    assert settings.to_dict() == {"level": 0.95, "n_resamples": 2000, "n_refits": 40, "seed": 0}
    said = "level 95%; 2,000 bootstrap samples where an interval takes them; 40 refits of probes"
    assert said in plain(page)


def test_what_is_the_same_in_all_files_is_said_once(page, analysis):
    (checks,) = re.findall(r'<h2 id="checks">.*?</table>', page, re.DOTALL)
    (table,) = re.findall(r"<table>.*", checks, re.DOTALL)
    assert analysis.tables["checks"]["variant"].nunique() == 1
    assert "The same in all of them: " in checks
    assert "variant standard" in checks
    assert "variant" not in table


def test_repeated_items_are_named(tmp_path):
    normalizer = {"normalizer": np.zeros((1, 3, 4, 1))}
    store = synthetic.write(tmp_path / "a.h5", normalizer)
    assert "repeated items" not in dict(model_facts(Analysis(Files(natural=store), {}, {})))
    index = {"tokens": np.array([[1, 2, 3, 4], [1, 5, 6, 7], [1, 2, 3, 4]])}
    twice = synthetic.write(tmp_path / "b.h5", normalizer, index=index)
    said = dict(model_facts(Analysis(Files(natural=twice), {}, {})))["repeated items"]
    assert said == (
        "b: 1 of 3 items repeats another token for token (0 = 2); "
        "intervals take them as independent"
    )


@pytest.mark.parametrize(
    ("corpus", "option"),
    [
        ("my words.txt", " --text 'my words.txt'"),
        ("pydoc_data.topics, Python 3.11.7", ""),
        ("a text without a name", ""),
    ],
)
def test_the_text_is_named(corpus, option, tmp_path):
    stimulus = {"bos_token": 1, "corpus": corpus}
    store = synthetic.write(
        tmp_path / "a.h5", {"normalizer": np.zeros((1, 2, 4, 1))}, stimulus=stimulus
    )
    analysis = Analysis(Files(natural=store), {}, {})
    assert dict(model_facts(analysis))["text"] == corpus
    assert commands(analysis)[0].endswith(f"--seed 0{option}")


def test_texts_are_named_as_they_were_given(tmp_path):
    text = {"given": ["a b.txt", "hf:org/name:test"], "field": "body", "limit": 5000}
    store = synthetic.write(
        tmp_path / "a.h5",
        {"normalizer": np.zeros((1, 2, 4, 1))},
        stimulus={"bos_token": 1, "corpus": "a b.txt, hf:org/name:test", "text": text},
    )
    said = "--text 'a b.txt' --text hf:org/name:test --text-field body --text-characters 5000"
    assert commands(Analysis(Files(natural=store), {}, {}))[0].endswith(said)


def test_shares_of_bands_are_said_with_their_intervals_or_as_undefined(analysis):
    section = next(section for section in SECTIONS if section.name == "bands")
    text = section.finding(analysis)
    assert "residual channel by band of rotation, over all layers: turns > 1: 0.25 (0.12 to" in text
    assert "mask channel by band of rotation, over all layers: turns > 1: undefined, turns" in text


# --- what is missing ---


@pytest.mark.usefixtures("no_figures")
def test_sections_without_tables_are_one_line(analysis, stores, tmp_path):
    partial = only(analysis, "repeated", repeated=stores["repeated"])
    text = render(partial, tmp_path, make_claims(analysis))
    assert "do not tell which channel carries absolute position" in text
    for section in SECTIONS:
        note = squeezed(f"{section.title} This needs {section.missing}.")
        assert (note in text) == (section.name != "repeated")


@pytest.mark.usefixtures("no_figures")
def test_a_natural_file_alone_makes_a_report(stores, tmp_path):
    found = analyze_files(sort_files([stores["natural"]]))
    text = render(found, tmp_path)
    assert "in natural text" in text
    assert "8 sequences of 24 tokens" in text


# --- self-contained ---


class References(HTMLParser):
    """All that a page loads or links to."""

    def __init__(self, page):
        super().__init__()
        self.found, self.tags = [], set()
        self.feed(page)
        self.found += re.findall(r"url\(([^)]*)\)|@import", page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.found += [value for name, value in attrs if name in names]

    @property
    def outside(self):
        return [x for x in self.found if not x.startswith(("#", "data:image/png;base64,"))]


def test_nothing_comes_from_outside(page):
    references = References(page)
    assert len(references.found) > 50
    assert references.outside == []
    assert not references.tags & {"script", "link", "iframe", "object", "embed", "base"}
    for link in re.findall(r'<a href="#([^"]*)"', page):
        assert f'id="{link}"' in page


@pytest.mark.parametrize(
    "extra", ['<img src="https://x.org/a.png">', "<p style='background:url(a)'>"]
)
def test_what_comes_from_outside_would_be_seen(page, extra):
    assert References(page + extra).outside


def test_names_are_escaped(analysis, claims, tmp_path, no_figures):
    path = write_report(analysis, claims, tmp_path, title="a <b>bold</b> & title")
    page = path.read_text(encoding="utf-8")
    assert "<h1>a &lt;b&gt;bold&lt;/b&gt; &amp; title</h1>" in page


# --- files ---


def test_the_same_analysis_gives_the_same_bytes(analysis, claims, folder, tmp_path):
    write_report(analysis, claims, tmp_path)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_a_report_is_replaced_whole_or_not_at_all(analysis, claims, tmp_path, monkeypatch):
    path = write_report(analysis, claims, tmp_path)
    before = path.read_bytes()
    real = os.replace

    def replace(source, target):
        if str(target).endswith("report.html"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
        write_report(analysis, claims, tmp_path, title="another")
    assert path.read_bytes() == before
    assert not [p.name for p in tmp_path.rglob(".*")]


@pytest.mark.usefixtures("no_figures")
def test_what_an_earlier_run_left_is_deleted_and_captures_are_not(analysis, claims, tmp_path):
    left = ["tables/cut_sink_old.csv", "figures/cut_sink.svg"]
    kept = ["a.h5", "tables/b.h5", "tables/notes.txt", "mine.csv"]
    for name in left + kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    write_report(analysis, claims, tmp_path)
    assert not [name for name in left if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in kept)
    written = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    assert written == {*analysis.tables, "inference"}


@pytest.mark.usefixtures("no_figures")
def test_a_folder_that_cannot_be_written_is_refused(analysis, claims, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"folder '.*file/out' cannot be written .*; choose") as e:
        write_report(analysis, claims, tmp_path / "file" / "out")
    assert "\n" not in str(e.value)
