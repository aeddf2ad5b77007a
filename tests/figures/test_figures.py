"""Figures: what the tables say is drawn, with its interval, in the colours of all others."""

import io
import xml.etree.ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from posprobe.errors import DesignError
from posprobe.figures import PANELS, UNUSED_IDS, draw, to_png, to_svg
from posprobe.figures.style import MASK, RESIDUAL, STYLE, TOTAL

LAYERS = range(4)
REPLACED = dict(
    up_to=9, n=8, V_R_native=0.1, V_R_replaced=0.05, sink_rate_native=0.5, sink_rate_replaced=0.2
)


def with_limits(rows, *names):
    for row in rows:
        for name in names:
            row |= {f"{name}_low": row[name] - 0.1, f"{name}_high": row[name] + 0.2}
    return pd.DataFrame(rows)


def effects():
    rows = [
        {"stimulus": "shifted", "layer": layer, "position": p, "T": t, "M": 2 * t, "R": -t, "S": 0}
        for layer in (*LAYERS, "all")
        for p, t in ((1, 0.6), (9, 0.3), (33, 0.0))
    ]
    return with_limits(rows, *"TMRS")


def channels(heads=("all",)):
    rows = [
        {
            "stimulus": design, "layer": layer, "layer_type": "full", "head": head,
            "V_T": 1.0 + layer, "V_M": 2.0, "V_R": 0.5, "C_MR": -0.25,
            "share_mask": 0.7, "share_residual": 0.3, "status": "ok",
        }
        for design in ("shifted", "natural")
        for layer in LAYERS
        for head in heads
    ]  # fmt: skip
    table = with_limits(rows, "V_T", "V_M", "V_R", "C_MR", "share_mask", "share_residual")
    undefined = table["layer"] == 2
    table.loc[undefined, "status"] = "undefined"
    shares = [name for name in table if name.startswith("share")]
    table.loc[undefined, shares] = np.nan
    return table


def probes():
    rows = [
        {"layer": k, "features": f, "r2": 0.5, "low": 0.4, "high": 0.6, "estimand": e,
         "mae": 30.0, "mae_guess": 85.0}
        for k in LAYERS
        for f in ("normalizer", "residual", "normalizer+residual")
        for e in ("fixed_probe", "refit")[: 1 + (k == 0)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def partition():
    parts = [("unique", "normalizer"), ("unique", "residual"), ("shared", "normalizer+residual")]
    parts += [("shapley", "normalizer"), ("shapley", "residual")]
    rows = [
        {"layer": k, "quantity": q, "group": g, "estimate": 0.2, "low": 0.1, "high": 0.3,
         "estimand": "fixed_probe"}
        for k in LAYERS
        for q, g in parts
    ]  # fmt: skip
    return pd.DataFrame(rows)


def replacement():
    rows = [
        dict(treatment="mean", positions="early", fraction_removed=0.3, low=0.1, high=0.5),
        dict(treatment="mean", positions="all", fraction_removed=0.2, low=None, high=None),
        dict(treatment="zero", positions="all", fraction_removed=-9.0, low=-12.0, high=-7.0),
    ]
    return pd.DataFrame([row | REPLACED | {"primary": k == 0} for k, row in enumerate(rows)])


def specification():
    rng = np.random.default_rng(0)
    rows = [
        {"treatment": "mean", "positions": p, "offsets": "1", "layers": "all", "metric": m,
         "fraction_removed": rng.normal(), "primary": p == "early" and m == "V_R"}
        for p in ("early", "all")
        for m in ("V_R", "V_S", "mean |R|")
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table["low"], table["high"] = table["fraction_removed"] - 1, table["fraction_removed"] + 1
    return table


def cut_sink():
    rows = [
        dict(heads="sink-reading", n_heads_cut=4, measured="heads left whole", positions="all",
             fraction_removed=0.4, low=0.2, high=0.6),
        dict(heads="all", n_heads_cut=8, measured="without key 0", positions="all",
             fraction_removed=0.1, low=None, high=None),
    ]  # fmt: skip
    return pd.DataFrame(rows)


def by_offset():
    rows = [
        {"stimulus": "shifted", "positions": p, "layer": "all", "head": "all", "offset": d,
         "T": 0.4 - r, "M": 0.4, "R": -r}
        for p in ("early", "all")
        for d, r in ((1, 0.2), (2, 0.1), (8, 0.0))
    ]  # fmt: skip
    return with_limits(rows, "T", "M", "R")


def mask_layers():
    rows = [
        {
            "mask": mask,
            "layer": k,
            "quantity": "V_R",
            "estimate": v,
            "low": v - 0.1,
            "high": v + 0.1,
        }
        for mask, v in (("native", 0.2), ("window of 9 tokens", 0.5), ("no causal mask", 9.0))
        for k in LAYERS
    ]
    return pd.DataFrame(rows)


def by_layer(**columns):
    return pd.DataFrame({"layer": LAYERS} | columns)


@pytest.fixture(scope="module")
def tables():
    grid = pd.MultiIndex.from_product([LAYERS, range(2)], names=["layer", "head"])
    repeated = [
        dict(stimulus=s, layer=k, position=1, mask=3.0, residual=r)
        for k in LAYERS
        for s, r in (("repeated", 0.0), ("bos_repeated", 2.0))
    ]
    writing = [
        dict(quantity="written", heads=h, n_heads=4, estimate=v, low=v - 0.1, high=v + 0.1)
        for h, v in (("sink-reading", 2.0), ("other", 1.0), ("ratio", 2.0))
    ]
    denominator = [
        {"layer": k, "r2_attention": 0.5, "r2_scores": 0.3, "difference": 0.2} for k in LAYERS
    ]
    precision = [
        dict(position=p, scope=s, ratio=3.0, low=2.0, high=4.0)
        for p in (1, 9)
        for s in ("each head", "mean over heads")
    ]
    return {
        "position_effects": effects(),
        "channels": channels().drop_duplicates("stimulus"),
        "channels_by_layer": channels(),
        "channels_by_head": channels(heads=(0, 1)),
        "precision": pd.DataFrame(precision),
        "probes": probes(),
        "partition": partition(),
        "fixed_denominator": with_limits(denominator, "r2_attention", "r2_scores", "difference"),
        "sinks": grid.to_frame(index=False).assign(sink_rate=0.9, attention=0.5),
        "sink_writing": pd.DataFrame(writing),
        "closed_system": by_layer(
            norm=[1.0, 2, 3, 4], norm_later=1.0, difference=[0.0, 1e-6] * 2,
            cosine=[np.nan, 0.2, -0.3, 1.0], dimensions=[400.0, 3, 2, 90],
        ),
        "fingerprint": by_layer(stimulus="one first token", spread=0.0),
        "repeated": pd.DataFrame(repeated),
        "replacement": replacement(),
        "specification": specification(),
        "cut_sink": cut_sink(),
        "channels_by_offset": by_offset(),
        "mask_layers": mask_layers(),
        "conditions": with_limits(
            [
                {"condition": f"{first} at position 0", "V_M": 0.2, "V_R": 0.1, "C_MR": c}
                for first, c in (("text", -0.1), ("BOS", 0.1))
            ],
            "V_M", "V_R", "C_MR",
        ),
        "condition_replacement": pd.DataFrame(
            [dict(condition="BOS at position 0", fraction_removed=0.5, low=0.3, high=0.7)]
        ),
        "bands": with_limits(
            [
                {"layer": layer, "channel": c, "band": band, "share": share, "status": status}
                for layer in ("all", 0)
                for c, status in (("T", "undefined"), ("M", "ok"), ("R", "ok"), ("S", "ok"))
                for band, share in (("turns > 4", 0.2), ("turns < 4", 0.8))
            ],
            "share",
        ),
        "mask_probes": with_limits(
            [{"layer": k, "r2_native": 0.6, "r2_masked": 0.1} for k in LAYERS],
            "r2_native", "r2_masked",
        ),
    }  # fmt: skip


def drawn(name, tables):
    figure = draw(name, tables)
    assert figure is not None, name
    return figure.axes[0]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


# --- every panel ---


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_says_what_it_asks_and_names_its_axes(tables, name):
    ax = drawn(name, tables)
    assert len(ax.figure.get_suptitle()) > 10
    assert ax.get_xlabel()
    named = ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]
    assert any(named)
    assert len(PANELS[name].caption.format(level="95%")) > 40


@pytest.mark.parametrize("name", PANELS)
def test_every_caption_says_what_the_interval_is_or_that_there_is_none(name):
    words = ("interval", "estimates", "One cell", "The scale", "Exactly 0")
    assert any(word in PANELS[name].caption for word in words)


def test_panels_without_their_table_are_left_out(tables):
    for name, panel in PANELS.items():
        assert draw(name, {k: v for k, v in tables.items() if k != panel.needs}) is None
        assert draw(name, tables | {panel.needs: tables[panel.needs].iloc[:0]}) is None


def test_full_layers_are_marked_where_others_look_through_a_window(tables):
    def labels(table):
        figure = draw("channels_shifted", {"channels_by_layer": table})
        return figure.axes[0].get_legend_handles_labels()[1]

    table = tables["channels_by_layer"]
    mixed = table.assign(layer_type=["window(4)" if k else "full" for k in table["layer"]])
    assert "full attention (others: sliding window)" in labels(mixed)
    assert "full attention (others: sliding window)" not in labels(table)


def test_a_panel_of_a_design_needs_that_design(tables):
    table = tables["channels_by_layer"]
    only = {"channels_by_layer": table[table["stimulus"] == "shifted"]}
    assert draw("channels_shifted", only) is not None
    assert draw("channels_natural", only) is None


def test_an_unknown_name_is_refused(tables):
    with pytest.raises(DesignError, match="no figure is called 'pies': choose from position_eff"):
        draw("pies", tables)


# --- what is drawn ---


def test_bands_are_the_intervals_of_the_table(tables):
    ax = drawn("position_effects", tables)
    rows = tables["position_effects"].query("layer == 'all'")
    for part, band in zip("TMRS", ax.collections, strict=True):
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.min() == pytest.approx(rows[f"{part}_low"].min())
        assert edges.max() == pytest.approx(rows[f"{part}_high"].max())


def test_lines_are_the_estimates_of_the_table(tables):
    line = lines(drawn("position_effects", tables))["mask M"]
    np.testing.assert_allclose(line.get_xdata(), [1, 9, 33])
    np.testing.assert_allclose(line.get_ydata(), [1.2, 0.6, 0.0])


def test_thirds_of_depth_are_means_of_their_layers(tables):
    table = tables["position_effects"].copy()
    table.loc[table["layer"].isin([0, 1]), "T"] = 5.0
    ax = drawn("position_effects_first_third", {"position_effects": table})
    np.testing.assert_allclose(lines(ax)["total T"].get_ydata(), 5.0)
    last = drawn("position_effects_last_third", {"position_effects": table})
    np.testing.assert_allclose(lines(last)["total T"].get_ydata(), [0.6, 0.3, 0.0])
    assert ax.get_ylim() == last.get_ylim()


def test_a_channel_has_one_colour_everywhere(tables):
    found = {}
    for name in ("position_effects", "channels_shifted", "probes", "repeated", "shares"):
        for label, line in lines(drawn(name, tables)).items():
            for word in ("mask", "normalizer", "residual", "total"):
                if label.startswith((word, f"largest |{word[0].upper()}|")):
                    found.setdefault(word, set()).add(line.get_color())
    assert found == {
        "mask": {MASK}, "normalizer": {MASK}, "residual": {RESIDUAL}, "total": {TOTAL},
    }  # fmt: skip


def test_undefined_layers_are_marked_and_have_no_share(tables):
    ax = drawn("shares", tables)
    for line in ax.get_lines():
        if "share" in line.get_label():
            assert {0, 1, 3} == {round(x) for x in line.get_xdata()}
    labels = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert "undefined (1 of 4 layers)" in labels
    (patch,) = ax.patches
    assert patch.get_x() == pytest.approx(1.5)
    assert patch.get_hatch()


def test_undefined_heads_have_no_colour(tables):
    ax = drawn("heads_share", tables)
    values = ax.collections[0].get_array().reshape(4, 2)
    assert np.ma.getmaskarray(values)[2].all()
    assert not np.ma.getmaskarray(values)[[0, 1, 3]].any()


def test_mask_and_residual_maps_have_one_scale(tables):
    mask, residual = (
        drawn(f"heads_{name}", tables).collections[0] for name in ("mask", "residual")
    )
    assert mask.get_clim() == residual.get_clim()


def test_unbounded_intervals_are_words(tables):
    assert texts(drawn("replacement", tables)).count("interval unbounded") == 1
    assert texts(drawn("cut_sink", tables)) == ["interval unbounded"]


def test_what_lies_outside_is_said(tables):
    ax = drawn("replacement", tables)
    assert "outside: −9.0" in texts(ax)
    low, high = ax.get_xlim()
    assert low <= -1.5
    assert high >= 1


def test_the_study_and_the_primary_specification_are_marked(tables):
    ax = drawn("replacement", tables)
    assert "the study: 40%" in texts(ax)
    ticks = [tick.get_text() for tick in ax.get_yticklabels()]
    assert ticks == ["mean, early (primary)", "mean, all", "zero, all"]
    (star,) = [
        line for line in drawn("specification", tables).get_lines() if line.get_label() == "primary"
    ]
    chosen = tables["specification"].query("primary")["fraction_removed"].clip(-1, 1.3)
    np.testing.assert_allclose(star.get_ydata(), chosen)


def test_refitted_probes_have_bars(tables):
    assert len(drawn("probes", tables).containers) == 3
    table = tables["probes"]
    only = {"probes": table[table["estimand"] == "fixed_probe"]}
    assert all(len(bars[0].get_xdata()) == 0 for bars in drawn("probes", only).containers)


def test_exact_zeros_are_seen_on_logarithmic_axes(tables):
    ax = drawn("repeated", tables)
    low, _ = ax.get_ylim()
    assert (lines(ax)["largest |R|"].get_ydata() > low).all()


def test_offsets_are_those_of_early_queries(tables):
    found = lines(drawn("channels_by_offset", tables))
    np.testing.assert_allclose(found["residual stream R"].get_xdata(), [1, 2, 8])
    np.testing.assert_allclose(found["residual stream R"].get_ydata(), [-0.2, -0.1, 0.0])
    assert np.ptp(found["mask M"].get_ydata()) == 0


def test_the_trajectory_of_position_0_is_drawn(tables):
    (line, *_) = drawn("position0_cosine", tables).get_lines()
    np.testing.assert_allclose(line.get_ydata()[1:], [0.2, -0.3, 1.0])
    ax = drawn("position0_dimensions", tables)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [400, 3, 2, 90])
    assert ax.get_yscale() == "log"


def test_without_a_mask_lengths_differ_and_v_r_is_not_drawn(tables):
    found = lines(drawn("mask_layers", tables))
    assert {"native", "window of 9 tokens"} <= set(found)
    assert "no causal mask" not in found


def test_shares_of_bands_are_those_over_all_layers_where_they_are_defined(tables):
    found = lines(drawn("bands", tables))
    np.testing.assert_allclose(found["residual"].get_xdata(), [0.2, 0.8])
    assert len(found["net effect"].get_xdata()) == 0


# --- SVG ---


def test_the_same_figure_gives_the_same_text(tables):
    for name in ("channels_shifted", "heads_share", "specification"):
        first, second = (to_svg(draw(name, tables), name) for _ in range(2))
        assert first == second
        assert "date" not in first.lower()
        assert "matplotlib" not in first.lower()


def test_a_dollar_sign_is_drawn_and_encloses_no_mathematics(tables):
    named = tables["replacement"].assign(treatment=["$x$", "mean", "zero"])
    svg = to_svg(draw("replacement", tables | {"replacement": named}), "replacement")
    assert "$x$" in svg
    assert named["treatment"][0] == "$x$"


@pytest.mark.parametrize("name", ["channels_shifted", "heads_share", "specification"])
def test_a_figure_that_is_drawn_once_is_that_of_savefig(name, tables):
    figure, saved = draw(name, tables), draw(name, tables)
    canvas, dpi = figure.canvas, figure.dpi
    once = to_svg(figure, name), to_png(figure)
    assert (figure.canvas, figure.dpi) == (canvas, dpi)
    svg, png = io.StringIO(), io.BytesIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"posprobe {name}", "svg.id": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        saved.savefig(svg, format="svg", metadata=nothing)
        saved.savefig(png, format="png", dpi=200, metadata={"Software": None})
    drawing = svg.getvalue()
    assert once == (UNUSED_IDS.sub("", drawing[drawing.index("<svg") :]), png.getvalue())


def test_figures_are_whole_svg_files_and_share_no_identifier(tables):
    seen = set()
    for name in ("shares", "channels_shifted", "channels_natural", "repeated", "bos_repeated"):
        root = xml.etree.ElementTree.fromstring(to_svg(draw(name, tables), name))
        own = {node.get("id") for node in root.iter()} - {None}
        assert own
        assert not own & seen
        seen |= own
