"""The committed reports: their tables and claims, and what of them is not found again."""

import json

import pandas as pd
import scripts

REPORTS = scripts.ANALYSES / "reports"
COUNTED = ("V_T_p_adjusted", "V_R_p_adjusted")  # over all rows of a table: not of a part of it


def path(report, name):
    (found,) = (REPORTS / report / "tables").glob(f"{name}.csv*")
    return found


def table(report, name):
    return pd.read_csv(path(report, name))


def tables_of(folder):
    """Tables of a report that was just written, by name."""
    return {path.stem: pd.read_csv(path) for path in (folder / "tables").glob("*.csv")}


def row(report, name, labels):
    """The one row with these labels."""
    found = table(report, name)
    for column, value in labels.items():
        found = found[found[column] == value]
    assert len(found) == 1, (report, name, labels)
    return found.iloc[0]


def claims(report):
    """Claims by id, of a report on one model or of a comparison."""
    folder = REPORTS / report
    if (folder / "claims.json").exists():
        found = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    else:
        found = comparison(report)["claims"]
    return {claim["id"]: claim for claim in found}


def counted(claim):
    """The verdict that pages and answers count; older reports adjusted contrasts alone."""
    return claim.get("verdict_adjusted", claim["verdict"])


def comparison(report):
    return json.loads((REPORTS / report / "comparison.json").read_text(encoding="utf-8"))


def differences(report, name, found, folder, without=()):
    """What a recomputed part of a table says that the committed table does not.

    Rows that were not recomputed are no difference; rows that are not in the committed table are.
    Columns in `without` are left out, because they depend on rows that were not recomputed.
    """
    script = scripts.load("compare_reports")
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    new = folder / "tables" / f"{name}.csv"
    found.drop(columns=list(without), errors="ignore").to_csv(new, index=False)
    return [
        str(one)
        for one in script.compare_files(name, path(report, name), new)
        if one.column not in without and (one.column or one.new != script.ABSENT)
    ]
