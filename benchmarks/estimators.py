"""What sufficient statistics save: our estimators against the usual ones, ratios in one process.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \\
        python benchmarks/estimators.py [--quick] [--out FILE]

Everything runs on one thread. Each row asserts that both sides give the same answer, then prints
the ratio of their best times. --quick takes smaller data: it checks correctness, not the targets.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import himalaya
import numpy as np
import scipy
import sklearn
from himalaya.ridge import ColumnTransformerNoStack
from himalaya.ridge import GroupRidgeCV as HimalayaGroupRidgeCV
from scipy.linalg import blas
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from threadpoolctl import threadpool_limits

from posprobe import GroupRidgeCV, PositionProbe, VariancePartition
from posprobe.intervals import cluster_weights
from posprobe.probes import ClusterGram
from posprobe.probes.ridge.refit import weighted_fits


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is what the ratio must reach, or stay below."""

    what: str
    shape: str
    theirs: float
    ours: float
    target: str
    agreement: str

    def line(self) -> str:
        return (
            f"| {self.what} | {self.shape} | {seconds(self.theirs)} | {seconds(self.ours)} "
            f"| {self.theirs / self.ours:.3g} | {self.target} | {self.agreement} |"
        )


def seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def best_times(*calls: Callable[[], object], repeats: int) -> list[float]:
    """Shortest wall time of each call; they take turns, so that a busy moment hits them all."""
    best = [np.inf] * len(calls)
    for turn in range(repeats + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            # The first turn warms up.
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def make_data(s: int, t: int, p: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features with variance between sequences; the target reads a tenth of them."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(s), t)
    X = rng.normal(size=(s * t, p)) + 0.5 * rng.normal(size=(s, p))[groups]
    y = X[:, : max(1, p // 10)].sum(axis=1) + np.sqrt(p) * rng.normal(size=s * t)
    return X, y, groups


def replicate(s: int, t: int, p: int, target: float, replicates: int, theirs: int) -> Row:
    X, y, groups = make_data(s, t, p)
    weights = cluster_weights(s, replicates, 0).astype(float)
    alpha = 10.0
    gram = ClusterGram.from_arrays(X, y, groups)

    def refit(b: int) -> np.ndarray:
        return Ridge(alpha=alpha).fit(X, y, sample_weight=weights[b][groups]).coef_

    ours = weighted_fits(gram, weights, alpha)[0][..., 0]
    gap = max(abs(refit(b) - ours[b]).max() for b in range(2))
    assert gap < 1e-8, gap
    slow, fast = best_times(
        lambda: [refit(b) for b in range(theirs)],
        lambda: weighted_fits(gram, weights, alpha),
        repeats=5,
    )
    return Row(
        "bootstrap replicate, against `Ridge` with sample weights",
        f"S={s}, T={t}, p={p}", slow / theirs, fast / replicates, f">= {target:g}",
        f"coefficients to {gap:.0e}",
    )  # fmt: skip


def grid_search(s: int, t: int, p: int, repeats: int) -> Row:
    X, y, groups = make_data(s, t, p)
    alphas = np.logspace(-2, 5, 20)

    def theirs() -> GridSearchCV:
        return GridSearchCV(
            Ridge(), {"alpha": alphas}, cv=GroupKFold(5), scoring="neg_mean_squared_error"
        ).fit(X, y, groups=groups)

    def ours() -> GroupRidgeCV:
        return GroupRidgeCV(alphas=alphas).fit(X, y, groups=groups)

    a, b = theirs(), ours()
    gap = abs(b.cv_mse_ + a.cv_results_["mean_test_score"]).max()
    assert a.best_params_["alpha"] == b.alpha_[0]
    assert gap < 1e-8, gap
    assert abs(a.best_estimator_.coef_ - b.coef_).max() < 1e-8
    return Row(
        "GroupKFold(5) x 20 penalties, against `GridSearchCV(Ridge)`", f"S={s}, T={t}, p={p}",
        *best_times(theirs, ours, repeats=repeats), ">= 20",
        f"same penalty, errors to {gap:.0e}",
    )  # fmt: skip


def banded(s: int, t: int, p: int) -> list[Row]:
    """Against random search over 20 penalties in 20 directions, as many pairs as 20 x 20.

    Random directions are continuous, so at equal effort either side may be ahead by the width of
    a grid step; with twice as many steps ours must not be behind. A direction can all but leave a
    group out; our grid ends with leaving it out.
    """
    X, y, groups = make_data(s, t, p)
    X, y = X - X.mean(axis=0), y - y.mean()
    columns = {"a": slice(0, p // 2), "b": slice(p // 2, p)}
    split = list(GroupKFold(5).split(X, y, groups))
    solver = {"n_iter": 20, "alphas": np.logspace(-2, 5, 20), "progress_bar": False}
    bands = ColumnTransformerNoStack([(k, "passthrough", c) for k, c in columns.items()])
    model = HimalayaGroupRidgeCV(
        groups="input", cv=split, fit_intercept=True, solver_params=solver, random_state=0
    )
    start = time.perf_counter()
    model.fit(bands.fit_transform(X), y)
    slow = time.perf_counter() - start
    theirs = pooled_score(X, y, split, banded_weights(model, columns, p))
    rows = []
    for steps, tolerance in ((20, 1e-4), (39, 0.0)):
        alphas = np.append(np.logspace(-2, 5, steps), np.inf)
        ours = GroupRidgeCV(alphas=alphas, feature_groups=columns)
        (fast,) = best_times(lambda ours=ours: ours.fit(X, y, groups=groups), repeats=3)
        assert ours.best_score_ >= theirs - tolerance, (ours.best_score_, theirs)
        rows.append(Row(
            f"two penalties, {steps + 1} x {steps + 1} x 5 folds, against himalaya `GroupRidgeCV` "
            "(default solver, 20 directions x 20 penalties)", f"n={s * t}, p={p}", slow, fast,
            ">= 100", f"R2 {ours.best_score_:.6f} against {theirs:.6f}",
        ))  # fmt: skip
    return rows


def banded_weights(model: HimalayaGroupRidgeCV, columns: dict[str, slice], p: int) -> np.ndarray:
    """Penalty of each column: himalaya scales group g by exp(delta_g) and uses penalty 1."""
    deltas = np.asarray(model.deltas_).ravel()
    penalties = np.empty(p)
    for delta, chosen in zip(deltas, columns.values(), strict=True):
        penalties[chosen] = np.exp(-delta)
    return penalties


def pooled_score(X: np.ndarray, y: np.ndarray, split: list, penalties: np.ndarray) -> float:
    out, scale = np.empty_like(y), 1 / np.sqrt(penalties)
    for train, test in split:
        out[test] = Ridge(alpha=1.0).fit(X[train] * scale, y[train]).predict(X[test] * scale)
    return 1 - ((y - out) ** 2).sum() / ((y - y.mean()) ** 2).sum()


def one_pass(s: int, t: int, p: int, repeats: int) -> Row:
    X, y, groups = make_data(s, t, p)
    gram = ClusterGram.from_arrays(X, y, groups)
    assert abs(gram.rebase(np.zeros(p + 1)).sum()[:p, :p] / (X.T @ X) - 1).max() < 1e-6
    bare, whole, ours = best_times(
        lambda: [blas.dsyrk(1.0, X[i * t : (i + 1) * t].T) for i in range(s)],
        lambda: blas.dsyrk(1.0, X.T),
        lambda: ClusterGram.from_arrays(X, y, groups),
        repeats=repeats,
    )
    return Row(
        "one pass over the data, against one BLAS syrk per sequence", f"S={s}, T={t}, p={p}",
        bare, ours, ">= 0.667 (1.5x)", f"one syrk over all rows at once: {seconds(whole)}",
    )  # fmt: skip


def growth_in_tokens(s: int, t: int, p: int, repeats: int) -> Row:
    """Four times the tokens: the pass takes four times as long."""
    few, many = make_data(s, t, p), make_data(s, 4 * t, p)
    once, four = best_times(
        lambda: ClusterGram.from_arrays(*few),
        lambda: ClusterGram.from_arrays(*many),
        repeats=repeats,
    )
    return Row(
        "pass over 4 times the tokens, against once the tokens", f"S={s}, T={t} and {4 * t}, p={p}",
        four, once, "about 4", "-",
    )  # fmt: skip


def growth_of_replicates(s: int, t: int, p: int, repeats: int) -> Row:
    """Four times the tokens: a replicate takes as long as before."""
    weights = cluster_weights(s, 50, 0)
    few, many = (ClusterGram.from_arrays(*make_data(s, n, p)) for n in (t, 4 * t))
    once, four = best_times(
        lambda: weighted_fits(few, weights, 1.0),
        lambda: weighted_fits(many, weights, 1.0),
        repeats=repeats,
    )
    return Row(
        "replicate of 4 times the tokens, against once the tokens",
        f"S={s}, T={t} and {4 * t}, p={p}", four / 50, once / 50, "about 1", "-",
    )  # fmt: skip


def audit_layer(s: int, t: int, p: int) -> list[str]:
    """Cost of one layer as the audit runs it: absolute times, nothing to compare with."""
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(1.0, t + 1), s)
    groups = np.repeat(np.arange(s), t)
    X = rng.normal(size=(s * t, p + 9)) + np.log(y)[:, None] * rng.normal(size=p + 9) / 4
    bands = {"normalizer": slice(0, 9), "residual": slice(9, p + 9)}
    partition, lines = VariancePartition(bands), []

    def timed(what: str, call: Callable[[], object], per: int = 1) -> None:
        start = time.perf_counter()
        call()
        lines.append(f"| {what} | {seconds((time.perf_counter() - start) / per)} |")

    timed("N, R and J with 17 x 17 penalties, 5 folds", lambda: partition.fit(X, y, groups))
    timed("score-only intervals, 2000 replicates", lambda: partition.intervals("fixed_probe"))
    timed(
        "refit interval of N, R, J, per replicate",
        lambda: partition.replicates("refit", n_resamples=20), 20,
    )  # fmt: skip
    probe = PositionProbe()
    timed("position probe, residual alone", lambda: probe.fit(X[:, 9:], y, groups))
    weights = cluster_weights(probe.n_sequences_, 20, 0)
    timed("its refit interval, per replicate", lambda: probe.interval(weights=weights), 20)
    return lines


def machine() -> list[str]:
    info = Path("/proc/cpuinfo")
    names = [x.split(":")[1] for x in info.read_text().splitlines() if x.startswith("model name")] \
        if info.exists() else []  # fmt: skip
    return [
        f"- CPU: {names[0].strip() if names else platform.processor()}, {os.cpu_count()} cores; "
        "every figure on one thread",
        f"- load average while running: {os.getloadavg()[0]:.1f}",
        f"- Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
        f"scikit-learn {sklearn.__version__}, himalaya {himalaya.__version__}",
    ]


def measure(quick: bool) -> list[Row]:
    if quick:
        return [
            replicate(20, 32, 16, 1, 20, 2),
            grid_search(20, 32, 16, 1),
            *banded(10, 32, 16),
            one_pass(20, 32, 16, 3),
            growth_in_tokens(20, 32, 16, 3),
            growth_of_replicates(20, 32, 16, 3),
        ]
    return [
        replicate(100, 256, 64, 300, 400, 5),
        replicate(100, 256, 256, 60, 200, 3),
        replicate(60, 256, 768, 20, 40, 2),
        grid_search(100, 256, 64, 2),
        grid_search(100, 256, 256, 1),
        one_pass(100, 256, 64, 100),
        one_pass(100, 256, 256, 9),
        one_pass(60, 256, 768, 5),
        growth_in_tokens(40, 256, 256, 5),
        growth_of_replicates(40, 256, 256, 5),
        *banded(30, 256, 96),  # minutes, nearly all of them the other side's; so it comes last
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small data: correctness only")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args()
    with threadpool_limits(1):
        rows = measure(options.quick)
        layer = audit_layer(10, 32, 24) if options.quick else audit_layer(40, 255, 576)
    size = "10 sequences of 32 rows, 24" if options.quick else "40 sequences of 255 rows, 576"
    text = "\n".join([
        *machine(), "",
        "| what | shape | theirs | ours | ratio | target | agreement |",
        "|---|---|---|---|---|---|---|",
        *(row.line() for row in rows), "",
        f"One layer of an audit ({size} residual and 9 normalizer features):", "",
        "| step | time |", "|---|---|", *layer, "",
    ])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
