"""Compare architectures on one table by means, F tests, planned contrasts and a mixed model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from posprobe.architectures.contrasts import (
    RESPONSES,
    Contrast,
    adjust,
    contrast_interval,
    default_contrasts,
)
from posprobe.architectures.mixed_fit import MixedFit
from posprobe.architectures.mixed_model import fit_mixed
from posprobe.architectures.result import ArchitectureComparison, ContrastResult
from posprobe.architectures.summaries import (
    KEYS,
    ModelSummary,
    check_table,
    reference_depth,
    summarise_models,
)
from posprobe.architectures.two_stage import FTest, two_stage_f
from posprobe.errors import DesignError
from posprobe.intervals import Array, Interval

__all__ = ["compare_architectures"]

Effects = dict[str, Array]  # by response, weights of the fixed effects for every architecture

UNEVEN = 0.01  # warn about the F test if Bartlett's test of equal variances has a smaller p


def compare_architectures(
    table: pd.DataFrame,
    *,
    value: str = "value",
    contrasts: Sequence[Contrast] | None = None,
    level: float = 0.95,
    mixed_model: bool = True,
) -> ArchitectureComparison:
    """Compare architectures, with models rather than layers or sequences as the sample.

    Every model is reduced to its value at the reference depth (the mean depth) and its slope over
    depth. The primary test is the F test of the mixed model, in which layers are fixed and models
    are random. The `two_stage_f` on the values of M models of A architectures, F(A - 1, M - A),
    stands beside it as its check; where all models have the same layers the two are one test. Both
    assume that the models of an architecture are independent draws and that their variance is the
    same in every architecture. If there is only one architecture, or only one model of each,
    nothing is tested: the result then describes the models and gives the reason.

    Parameters
    ----------
    table : pandas.DataFrame
        One row for each model and layer, with the columns architecture, model, layer, depth (0 for
        the first layer, 1 for the last) and the value. With a further column sequence, one row for
        each model, layer and sequence: sequences are averaged, and each model gets an interval
        over its sequences. With a further column block, models of the same block (for instance
        the same seed) share it across architectures: the F tests and the mixed model set it aside,
        and contrasts are taken within blocks.
    value : str
        Column to compare. Means have its unit, and slopes its unit per model depth.
    contrasts : sequence of Contrast, optional
        By default the `planned_contrasts` of H1 and H2, if the table has the architectures ntk,
        window, and standard or rope.
    level : float
        Nominal coverage of all intervals.
    mixed_model : bool
        Fit ``value ~ architecture:layer + (1 + depth || model)``, with a term
        ``(1 + depth || block)`` if the table has blocks, or fixed blocks if some lack an
        architecture (the variance of few blocks of unequal size is hardly known). Layers are fixed
        within architecture, so what layers share is not taken for residual. If the models of an
        architecture have different depths, a straight line over depth takes the place of layers.
        Variances may be negative (see `fit_mixed`), so models whose layers hardly agree are not
        pooled with the residual. Tests have Satterthwaite's degrees of freedom. Without this model,
        or where it has no estimates, the two-stage test is the primary one.

    Returns
    -------
    ArchitectureComparison

    Raises
    ------
    DesignError
        If the table is unusable (see `posprobe.architectures.summaries.check_table`), the level is
        not between 0 and 1, two contrasts have the same name, or a contrast names an architecture
        that the table lacks.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [
    ...     (kind, f"{kind}-{seed}", layer, layer / 2, shift + 0.1 * seed + 0.3 * layer)
    ...     for kind, shift in [("rope", 0.0), ("window", 1.0)]
    ...     for seed in range(3)
    ...     for layer in range(3)
    ... ]
    >>> table = pd.DataFrame(rows, columns=["architecture", "model", "layer", "depth", "value"])
    >>> found = compare_architectures(table, mixed_model=False)
    >>> found.sentence()
    'Architectures differ in value at depth 0.50: two-stage F(1, 4) = 150.0, p = 0.00026 on 6 models
    of 2 architectures.'
    >>> print(found.means["window"])
    1.40 [1.15, 1.65]
    """
    if not 0 < level < 1:
        raise DesignError(f"level={level!r} must be between 0 and 1, e.g. 0.95")
    clean = check_table(table, value)
    depth = reference_depth(clean)
    models = summarise_models(clean, at=depth, level=level)
    labels = np.array([model.architecture for model in models])
    names, counts = np.unique(labels, return_counts=True)
    stage = _responses(models)
    blocks = _blocks(clean, models)
    reason = _refusal(stage["intercept"], labels, blocks)
    mixed, effects = _fit(clean, depth, tested=not reason) if mixed_model else (None, {})
    two_stage = {} if reason else _two_stage(stage, labels, blocks)
    modelled = {} if reason else _mixed_tests(mixed, effects)
    tests = two_stage | modelled
    planned, remark = _choose(contrasts, [str(name) for name in names])
    return ArchitectureComparison(
        value=value,
        status="refused" if reason else "tested",
        reason=reason,
        architectures={str(n): int(c) for n, c in zip(names, counts, strict=True)},
        depth=depth,
        level=level,
        test=tests.get("intercept"),
        slope_test=tests.get("slope"),
        checks=tuple(test for response, test in two_stage.items() if response in modelled),
        means=_describe(stage, "intercept", labels, value, level),
        slopes=_describe(stage, "slope", labels, value, level),
        contrasts=_contrast(planned, stage, labels, blocks, level, mixed, effects),
        models=models,
        mixed=mixed,
        notes=(*_notes(clean, models, labels, stage), *remark),
    )


def _responses(models: Sequence[ModelSummary]) -> dict[str, NDArray[np.float64]]:
    stage = {"intercept": np.array([model.intercept for model in models])}
    slopes = [model.slope for model in models if model.slope is not None]
    return stage | ({"slope": np.array(slopes)} if slopes else {})


def _blocks(clean: pd.DataFrame, models: Sequence[ModelSummary]) -> NDArray[np.str_] | None:
    if "block" not in clean.columns:
        return None
    homes = clean.groupby(clean["model"].astype(str))["block"].first().astype(str)
    return np.array([homes[model.model] for model in models])


def _refusal(
    summaries: NDArray[np.float64],
    labels: NDArray[np.str_],
    blocks: NDArray[np.str_] | None = None,
) -> str:
    try:
        statistic, *_ = two_stage_f(summaries, labels, blocks)
    except DesignError as error:
        return str(error)
    if np.isnan(statistic):
        return (
            "the models of each architecture agree to rounding, so there is no spread to test "
            "against: are they copies of one model?"
        )
    return ""


def _two_stage(
    stage: dict[str, NDArray[np.float64]],
    labels: NDArray[np.str_],
    blocks: NDArray[np.str_] | None,
) -> dict[str, FTest]:
    found = {}
    for response, values in stage.items():
        statistic, p_value, between, within = two_stage_f(values, labels, blocks)
        if not np.isnan(statistic):
            numbers = float(statistic), between, float(within), float(p_value)
            found[response] = FTest(response, *numbers, method="two-stage F")
    return found


def _describe(
    stage: dict[str, NDArray[np.float64]],
    response: str,
    labels: NDArray[np.str_],
    value: str,
    level: float,
) -> dict[str, Interval]:
    if response not in stage:
        return {}
    names = np.unique(labels)
    what = "mean" if response == "intercept" else "depth slope"
    return {
        str(name): contrast_interval(
            stage[response], labels, weights, estimand=f"{what} of {value}, {name}", level=level
        )[0]
        for name, weights in zip(names, np.eye(len(names)), strict=True)
    }


def _choose(
    contrasts: Sequence[Contrast] | None, names: list[str]
) -> tuple[tuple[Contrast, ...], tuple[str, ...]]:
    if contrasts is None:
        planned = default_contrasts(names)
        lacking = "no planned contrasts: the table lacks ntk, window, or standard (rope)"
        return planned, () if planned else (lacking,)
    labels = [contrast.name for contrast in contrasts]
    if len(set(labels)) < len(labels):
        raise DesignError(f"two contrasts have the same name among {labels}: rename one")
    return tuple(contrasts), ()


def _contrast(
    planned: tuple[Contrast, ...],
    stage: dict[str, NDArray[np.float64]],
    labels: NDArray[np.str_],
    blocks: NDArray[np.str_] | None,
    level: float,
    mixed: MixedFit | None,
    effects: Effects,
) -> tuple[ContrastResult, ...]:
    names = [str(name) for name in np.unique(labels)]
    vectors = [(one, one.vector(names)) for one in planned]
    asked = [(one, weights) for one, weights in vectors if one.response in stage]
    found = [
        contrast_interval(
            stage[one.response], labels, weights, estimand=one.name, blocks=blocks, level=level
        )
        for one, weights in asked
    ]
    p_values = [p for _, p in found]
    return tuple(
        ContrastResult(one, interval, p, holm, bh, _beside(mixed, effects, one, weights, level))
        for (one, weights), (interval, p), holm, bh in zip(
            asked, found, adjust(p_values), adjust(p_values, "fdr_bh"), strict=True
        )
    )


def _fit(clean: pd.DataFrame, depth: float, *, tested: bool) -> tuple[MixedFit | None, Effects]:
    """Fit the mixed model; return it with its weights of each architecture's mean and slope."""
    keys = [name for name in (*KEYS, "block") if name in clean.columns]
    cells = clean.groupby(keys, as_index=False, observed=True)["value"].mean()
    if len(cells) < 2:
        return None, {}
    labels = cells["architecture"].astype(str) + ", layer " + cells["layer"].astype(str)
    cells = cells.assign(z=cells["depth"] - depth, cell=labels)
    sloped = bool(cells["z"].groupby(cells["model"]).nunique().max() > 1)
    fixed = _block_columns(cells) if tested else pd.DataFrame(index=cells.index)
    formula = _formula(cells, sloped, list(fixed.columns))
    mixed = fit_mixed(formula, cells.join(fixed), signed=True)
    if not mixed.usable:
        return mixed, {}
    rows: dict[str, list[Array]] = {name: [] for name in RESPONSES[: 1 + sloped]}
    for _, own in cells.groupby("architecture", observed=True):
        grid = own.drop_duplicates("depth").assign(**fixed.mean())
        columns = [np.ones(len(grid)), grid["z"].to_numpy()][: 1 + sloped]
        summaries = np.linalg.pinv(np.column_stack(columns)) @ mixed.rows(grid)
        for name, row in zip(rows, summaries, strict=True):
            rows[name].append(row)
    return mixed, {name: np.array(found) for name, found in rows.items()}


def _block_columns(cells: pd.DataFrame) -> pd.DataFrame:
    """Columns that set blocks aside if some lack an architecture: each block against the first."""
    if "block" not in cells.columns:
        return pd.DataFrame(index=cells.index)
    models = cells.drop_duplicates("model")
    counts = pd.crosstab(models["architecture"].astype(str), models["block"].astype(str))
    if counts.to_numpy().min() == counts.to_numpy().max():
        return pd.DataFrame(index=cells.index)
    own = cells["block"].astype(str)
    columns = {f"block_{k}": (own == block) * 1.0 for k, block in enumerate(counts.columns)}
    return pd.DataFrame(columns).iloc[:, 1:]


def _formula(cells: pd.DataFrame, sloped: bool, blocks: list[str]) -> str:
    """Layers are fixed within architecture where all its models have the same, else a line is."""
    layers = cells["cell"] + " at " + cells["depth"].astype(str)
    grids = layers.groupby([cells["architecture"], cells["model"]], observed=True).agg(" ".join)
    matched = grids.groupby(level=0, observed=True).nunique().max() == 1
    line = " + C(architecture):z" if sloped else ""
    fixed = "0 + C(cell)" if matched else f"0 + C(architecture){line}"
    fixed += "".join(f" + {name} + {name}:z" if sloped else f" + {name}" for name in blocks)
    effects = "1 + z" if sloped else "1"
    groups = ["model", "block"] if "block" in cells.columns and not blocks else ["model"]
    return f"value ~ {fixed} + " + " + ".join(f"({effects} || {group})" for group in groups)


def _mixed_tests(mixed: MixedFit | None, effects: Effects) -> dict[str, FTest]:
    found = {}
    for response, rows in effects.items():
        if mixed is not None and len(rows) > 1:
            numbers = mixed.f_test(np.diff(rows, axis=0))
            found[response] = FTest(response, *numbers, method="mixed model F")
    return found


def _beside(
    mixed: MixedFit | None,
    effects: Effects,
    contrast: Contrast,
    weights: NDArray[np.float64],
    level: float,
) -> Interval | None:
    if mixed is None or contrast.response not in effects:
        return None
    row = weights @ effects[contrast.response]
    return mixed.contrast(row, estimand=contrast.name, level=level)


def _notes(
    clean: pd.DataFrame,
    models: Sequence[ModelSummary],
    labels: NDArray[np.str_],
    stage: dict[str, NDArray[np.float64]],
) -> tuple[str, ...]:
    notes = []
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() == 1 < counts.max():
        lonely = ", ".join(names[counts == 1])
        notes.append(f"one model only of {lonely}: its spread is not known, nor are its limits")
    if counts.min() != counts.max():
        notes.append(
            "unequal numbers of models: the F test then leans on equal variances in all "
            "architectures"
        )
    if "block" in clean.columns:
        notes.append(
            "contrasts are taken within blocks, and the F tests and the mixed model set blocks "
            "aside; limits of means are over all models"
        )
    notes += _uneven_spread(stage["intercept"], labels)
    if "slope" in stage and not _refusal(stage["intercept"], labels):
        flat = _refusal(stage["slope"], labels)
        notes += [f"no test of slopes: {flat}"] if flat else []
    grids = {tuple(sorted(rows.unique())) for _, rows in clean.groupby("model")["depth"]}
    if "slope" not in stage:
        depths = "" if len(grids) == 1 else ", and not at the same depth in every model"
        notes.append(f"one layer per model: no slope over depth, means only{depths}")
    elif len(grids) > 1:
        notes.append("layers lie at different depths in different models: models weigh equally")
    if len({model.n_sequences for model in models}) > 1:
        notes.append("models differ in their number of sequences: models weigh equally")
    return tuple(notes)


def _uneven_spread(values: NDArray[np.float64], labels: NDArray[np.str_]) -> list[str]:
    """Say where the F test, which assumes one spread, meets very different ones."""
    groups = {name: part for name, part in pd.Series(values).groupby(labels) if len(part) > 1}
    spread = pd.Series({name: part.std(ddof=1) for name, part in groups.items()})
    if len(spread) < 2 or spread.max() == 0:
        return []
    if spread.min() > 0 and stats.bartlett(*groups.values()).pvalue > UNEVEN:
        return []
    wide, narrow = spread.idxmax(), spread.idxmin()
    return [
        f"models of {wide} spread more widely than those of {narrow} (standard deviations "
        f"{spread.max():.2g} and {spread.min():.2g}), and the F test assumes that they do not: "
        "read Welch's F beside it"
    ]
