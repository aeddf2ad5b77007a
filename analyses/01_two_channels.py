"""Analysis 1: where one model gets absolute position from.

Question. Attention in a RoPE decoder tells absolute position apart, although its scores are a
function of offsets. The study says that two channels bring it: the causal mask's denominator, and
the residual stream, fed by position 0 through sink-reading heads. How much comes through each, in
one model, and which part of the mechanism can be taken away?

Protocol.

1. Split. 32 windows of 32 tokens, each behind prefixes of 1 to 224 tokens, with what the tokenizer
   puts at position 0; where that is no BOS, the same again behind a forced one.
   Effect of position on the log attention weight at offsets 1, 2, 4, 8; the mask's part is what
   the late row would change if it saw only the keys of the early one; the rest is the residual
   channel. Variances over positions by a U-statistic over pairs of different windows.
2. Calibration. One token repeated: all hidden states are equal, and the residual channel must
   read 0. The same behind a BOS: it must open.
3. Position 0 replaced: mean embedding (the primary specification, fixed beforehand in
   posprobe.analysis.replacement.PRIMARY), random content token, another special token, noise of
   the same norm, zero; every other specification in the specification curve.
4. Key 0 hidden from sink-reading heads (chosen on one half of the natural sequences), from as many
   random others in two draws, and from all heads.
5. Denominator taken out: of the patterns that a probe reads, and inside the first layer's forward
   pass.
6. No causal mask (shifted, and natural, where all queries then see equally many keys), and a window
   of 32 tokens, behind which the mask is the same at every position.

The captures of 4 to 6 and of the last three replacements have the first 16 windows of 1, and are
paired with these. Intervals are over windows or sequences, at 95%.

Run it with ``python analyses/01_two_channels.py [MODEL]``. The report, the claims and the tables
go to ``analyses/reports/01_two_channels``, captured files (some 2 GB) to ``out/01_two_channels``;
interrupted, it goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from posprobe.workflows.audit import audit

HERE = Path(__file__).resolve().parent
REPORT = HERE / "reports" / "01_two_channels"
FILES = HERE.parent / "out" / "01_two_channels"
WRITTEN = ("report.html", "claims.json", "tables", "figures")


def keep(source: Path, target: Path) -> None:
    """Copy what a reader wants, and not the captured files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)  # of an earlier run
            shutil.copytree(source / name, target / name)
        else:
            shutil.copy(source / name, target / name)


def describe(claim: dict) -> str:
    """One claim as two lines: verdict and number, then the sentence."""
    value = "" if claim["estimate"] is None else f"{claim['estimate']:.3g}"
    if claim["ci_low"] is not None:
        value += f" [{claim['ci_low']:.3g}, {claim['ci_high']:.3g}]"
    elif value:
        value += f" ({claim['ci_method']})"
    reference = "" if claim["reference"] is None else f"; the study: {claim['reference']:g}"
    verdict = f"{claim['verdict_adjusted']:15}"
    return f"{verdict} {claim['id']}: {value}{reference}\n{'':15} {claim['statement']}"


@click.command(help=__doc__.splitlines()[0])
@click.argument("model", default="smollm2")
@click.option("--n", type=int, help="Sequences and windows.  [default: 40, 32 and 16]")
@click.option("--length", type=int, default=256, show_default=True, help="Tokens per sequence.")
@click.option("--files", type=click.Path(path_type=Path), default=FILES, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--text", type=click.Path(path_type=Path, exists=True), help="UTF-8 text.")
def main(
    model: str, n: int | None, length: int, files: Path, report: Path, text: Path | None
) -> None:
    """Run the full audit, keep its report, and print the claims."""
    audit(model, files, n=n, length=length, text=text, full=True)
    keep(files, report)
    for claim in json.loads((report / "claims.json").read_text(encoding="utf-8")):
        print(describe(claim))


if __name__ == "__main__":
    main()
