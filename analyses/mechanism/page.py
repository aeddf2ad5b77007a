"""The pages of the report: one for each model, the finding first, and one over all models."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from conditions.models import slug
from matplotlib.figure import Figure
from mechanism.elsewhere import draw_elsewhere, elsewhere_finding, elsewhere_lines
from mechanism.findings import Finding
from mechanism.shape import between_lines, draw_shape, shape_finding, shape_lines
from mechanism.steering import steering_finding, steering_lines
from prose import wrapped

from posprobe.figures import to_svg
from posprobe.report.words import number, with_interval

UNFINISHED = "The script had not run to its end when it wrote this page: questions are missing."
QUESTIONS = {"zeroed", "erased", "steered", "elsewhere", "shape"}
CHANNELS = {"T": "net effect", "M": "mask channel", "R": "residual channel", "S": "sink's part"}
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#858585")


def write_page(report: Path, model: str, tables: dict[str, pd.DataFrame]) -> str:
    """Write one model's tables, figures and README.md, with a section for each table."""
    for folder in ("tables", "figures"):
        (report / folder).mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(report / "tables" / f"{name}.csv", index=False, float_format="%.6g")
    overall = tables["bands"][tables["bands"]["layer"] == "all"]
    sections = [
        f"# Which frequencies carry position in {model}, and whether it is used",
        "",
        *(finding.line() for finding in findings(tables)),
        "",
        "Intervals are at 95%, over items, not adjusted for their number. The protocol is at the "
        "top of `analyses/04_mechanism.py`, which writes this page; the equations are in "
        "[docs/mechanism.md](../../../../docs/mechanism.md).",
        "",
        *shares(overall, tables["channels"]),
        "![Shares of the channels by band](figures/bands.svg)",
        "",
        *([] if tables.keys() >= QUESTIONS else [UNFINISHED, ""]),
        *(without(tables["zeroed"]) if "zeroed" in tables else []),
        *(erasing(tables["erased"], tables["probes"]) if "erased" in tables else []),
        *(steering_lines(tables["steered"]) if "steered" in tables else []),
        *(elsewhere_lines(tables["elsewhere"]) if "elsewhere" in tables else []),
        *(shape_lines(tables["shape"], tables["alignment"]) if "shape" in tables else []),
    ]
    page = "\n".join(map(wrapped, sections)).rstrip() + "\n"
    (report / "README.md").write_text(page, encoding="utf-8")
    drawn = {"bands": draw_shares(overall)}
    if "elsewhere" in tables:
        drawn["elsewhere"] = draw_elsewhere(tables["elsewhere"])
    if "shape" in tables:
        drawn["shape"] = draw_shape(tables["coordinates"], tables["alignment"])
    for name, figure in drawn.items():
        svg = to_svg(figure, name)
        (report / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
    return page


def write_overview(
    report: Path, tables: dict[str, dict[str, pd.DataFrame]], between: pd.DataFrame
) -> str:
    """Write README.md over all models: what each claim came to, and whether they share a code."""
    found = {model: {f.claim: f for f in findings(own)} for model, own in tables.items()}
    claims = list(dict.fromkeys(claim for own in found.values() for claim in own))
    agreed = [c for c in claims if len({own[c].verdict for own in found.values() if c in own}) == 1]
    sections = [
        "# Which frequencies carry position, and whether it is used",
        "",
        f"Of {len(claims)} claims {len(agreed)} have the same verdict in every model. Each is "
        "about a 4-bit model without BOS at position 0, reading the Python language reference; "
        "intervals are at 95%, over items, not adjusted. Each model has a page: "
        + ", ".join(f"[{model}]({slug(model)}/README.md)" for model in found)
        + ". The protocol is at the top of `analyses/04_mechanism.py`, which writes this page.",
        "",
        "| claim | " + " | ".join(found) + " |",
        "|---" * (1 + len(found)) + "|",
    ]
    for claim in claims:
        cells = [
            f"{own[claim].verdict}: {own[claim].number}" if claim in own else "not measured"
            for own in found.values()
        ]
        sections.append(f"| {claim} | " + " | ".join(cells) + " |")
    if len(between):
        sections += ["", *between_lines(between)]
    page = "\n".join(map(wrapped, sections)).rstrip() + "\n"
    (report / "README.md").write_text(page, encoding="utf-8")
    return page


def findings(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """One verdict for each claim whose table is there."""
    overall = tables["bands"][tables["bands"]["layer"] == "all"]
    found = carried(overall)
    if "zeroed" in tables:
        rows = tables["zeroed"].groupby("band", sort=False)
        found.extend(_needed(band, own) for band, own in rows)
    later = {
        "erased": erasing_finding,
        "steered": steering_finding,
        "elsewhere": elsewhere_finding,
        "shape": shape_finding,
    }
    return found + [say(tables[name]) for name, say in later.items() if name in tables]


def carried(overall: pd.DataFrame) -> list[Finding]:
    """Whether one band has more than half of V_R, under every variant."""
    found = []
    for variant, rows in overall[overall["channel"] == "R"].groupby("variant", sort=False):
        top = rows.loc[rows["share"].idxmax()]
        verdict = "supported" if top["share_low"] > 0.5 else "undecided"
        found.append(
            Finding(
                f"One band carries the residual channel, {variant}",
                verdict,
                f"{top['band']}: {_share(top)}",
                f"The band {top['band']} has {_share(top)} of V_R, with {top['dimensions']:.0f} "
                "dimensions of a head.",
            )
        )
    return found


def _needed(band: object, rows: pd.DataFrame) -> Finding:
    """Whether V_R without a band differs from 1 and from every control."""
    own, control = rows.iloc[0], rows.iloc[1:]
    less = own["V_R_left_high"] < min(1.0, control["V_R_left_low"].min())
    more = own["V_R_left_low"] > max(1.0, control["V_R_left_high"].max())
    verdict = "supported" if less else "contradicted: V_R grows" if more else "undecided"
    drawn = "; ".join(with_interval(row, "V_R_left") for _, row in control.iterrows())
    return Finding(
        f"The band {band} is needed for the residual channel",
        verdict,
        f"{with_interval(own, 'V_R_left')} left",
        f"Without it V_R is {with_interval(own, 'V_R_left')} times what it was; without as many "
        f"random pairs {drawn}. The loss changes by {with_interval(own, 'loss')} nats per token, "
        f"from {own['native_loss']:.2f}; with random pairs by "
        f"{'; '.join(with_interval(row, 'loss') for _, row in control.iterrows())}.",
    )


def shares(overall: pd.DataFrame, channels: pd.DataFrame) -> list[str]:
    """The share of every band in every channel, under every variant."""
    lines = ["## Shares of the bands", ""]
    variants = list(channels["variant"])
    lines += [
        "| channel | band | " + " | ".join(variants) + " |",
        "|---" * (2 + len(variants)) + "|",
    ]
    for channel, what in CHANNELS.items():
        cells = [number(float(channels.loc[channels["variant"] == v, f"V_{channel}"].iloc[0]))
                 for v in variants]  # fmt: skip
        lines.append(f"| {what} | V_{channel}, nats² | " + " | ".join(cells) + " |")
        rows = overall[overall["channel"] == channel]
        for band in rows["band"].unique():
            cells = [_share(rows[(rows["band"] == band) & (rows["variant"] == v)].iloc[0])
                     for v in variants]  # fmt: skip
            lines.append(f"| {what} | {band} | " + " | ".join(cells) + " |")
    size = overall[overall["channel"] == "R"].groupby(["variant", "band"], sort=False)
    counts = ", ".join(f"{v}, {b}: {n:.0f}" for (v, b), n in size["dimensions"].first().items())
    return [*lines, "", f"Dimensions of a head (of 64) in each band: {counts}.", ""]


def without(zeroed: pd.DataFrame) -> list[str]:
    """What is left without each band, and without as many random pairs."""
    lines = ["## Without a band", ""]
    lines += [
        "| left out | V_R left | V_M left | loss gained |",
        "|---|---|---|---|",
    ]
    for _, row in zeroed.iterrows():
        what = row["band"] if row["zeroed"] == "band" else f"as many pairs, {row['zeroed']}"
        cells = [with_interval(row, name) for name in ("V_R_left", "V_M_left", "loss")]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def erasing_finding(erased: pd.DataFrame) -> Finding:
    """Whether erasing position removes part of the residual channel, and more than the control."""
    rows = erased.set_index("erased")
    own, random, content = (rows.loc[what] for what in ("position", "random", "content"))
    less = own["V_R_left_high"] < min(1.0, random["V_R_left_low"], content["V_R_left_low"])
    more = own["V_R_left_low"] > max(1.0, random["V_R_left_high"], content["V_R_left_high"])
    verdict = "supported" if less else "contradicted: V_R grows" if more else "undecided"
    block = int(own["layer"])
    return Finding(
        "Position in the stream, a third of the way up, is needed for the residual channel behind",
        verdict,
        f"{with_interval(own, 'V_R_left')} left",
        f"Without it at block {block} V_R of the blocks from there on is "
        f"{with_interval(own, 'V_R_left')} times what it was, without as many random directions "
        f"{with_interval(random, 'V_R_left')}, without the frequency of the token "
        f"{with_interval(content, 'V_R_left')}. The loss changes by {with_interval(own, 'loss')}, "
        f"{with_interval(random, 'loss')} and {with_interval(content, 'loss')} nats per token.",
    )


def erasing(erased: pd.DataFrame, probes: pd.DataFrame) -> list[str]:
    """What is left after erasing, and what later probes read."""
    lines = [f"## Position erased at block {erased['layer'].iloc[0]}", ""]
    lines += ["| erased | rank | V_R left | V_M left | loss gained |", "|---|---|---|---|---|"]
    for _, row in erased.iterrows():
        cells = [with_interval(row, name) for name in ("V_R_left", "V_M_left", "loss")]
        lines.append(f"| {row['erased']} | {row['rank']} | " + " | ".join(cells) + " |")
    layers = list(probes["layer"].unique())
    lines += ["", "R² of probes for the position, from the stream that enters a block:", ""]
    head = ["erased", *(f"block {layer}" for layer in layers)]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for what, rows in probes.groupby("erased", sort=False):
        cells = [with_interval(row, "r2") for _, row in rows.iterrows()]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def draw_shares(overall: pd.DataFrame) -> Figure:
    """Shares of every band with intervals: a panel for each channel, a colour for each band."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(CHANNELS), sharey=False)
    variants = list(overall["variant"].unique())
    for ax, (channel, what) in zip(panels, CHANNELS.items(), strict=True):
        rows = overall[overall["channel"] == channel]
        for k, band in enumerate(overall["band"].unique()):
            part = rows[rows["band"] == band].set_index("variant").reindex(variants)
            places = [v + 0.15 * (k - 1.5) for v in range(len(variants))]
            ax.plot(places, part["share"], "o", color=COLOURS[k % 4], ms=4, label=band)
            ax.vlines(places, part["share_low"], part["share_high"], color=COLOURS[k % 4])
        ax.axhline(0, color="black", lw=0.7)
        ax.set_xticks(range(len(variants)), variants, fontsize=8)
        ax.set_title(f"{what} ({channel})", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of the variance")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _share(row: pd.Series) -> str:
    return "undefined" if row["status"] != "ok" else with_interval(row, "share")
