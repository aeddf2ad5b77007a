"""The result of a comparison of architectures, with its tables and a one-line summary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from posprobe.architectures.contrasts import RESPONSES, Contrast, adjust
from posprobe.architectures.mixed_fit import MixedFit
from posprobe.architectures.summaries import ModelSummary
from posprobe.architectures.two_stage import FTest, welch_f
from posprobe.errors import DesignError, Telling
from posprobe.intervals import Interval

__all__ = ["ArchitectureComparison", "ContrastResult", "adjust_secondary"]

PARTS = ("estimates", "tests", "contrasts", "models", "mixed", "residuals", "influence")


@dataclass(frozen=True)
class ContrastResult:
    """A planned contrast with its interval.

    Attributes
    ----------
    contrast : Contrast
        What was compared.
    interval : Interval
        From `contrast_interval` or `paired_contrasts`, not adjusted for the other contrasts.
    p_value : float
        Two-sided, not adjusted.
    p_holm, p_bh : float
        Adjusted for all contrasts of the comparison, by Holm's method (family-wise error rate) and
        by that of Benjamini and Hochberg (false discovery rate).
    mixed : Interval or None
        The interval of the contrast in the mixed model; None if that has no estimates.
    """

    contrast: Contrast
    interval: Interval
    p_value: float
    p_holm: float
    p_bh: float
    mixed: Interval | None


@dataclass(frozen=True, repr=False)
class ArchitectureComparison(Telling):
    """The result of `compare_architectures`.

    Attributes
    ----------
    value : str
        Name of the compared value.
    status : {"tested", "refused"}
        "refused" if the design allows no test; the result then only describes the models.
    reason : str
        Why the test was refused; empty if it was not.
    architectures : dict of str to int
        Number of models of each architecture.
    depth : float
        Depth at which means are taken, from 0 (first layer) to 1 (last layer).
    level : float
        Nominal coverage of all intervals.
    test : FTest or None
        The primary test, of equal means at `depth`: by the mixed model, or the two-stage test where
        that has no estimates.
    slope_test : FTest or None
        The test of equal slopes over depth, likewise.
    checks : tuple of FTest
        The two-stage tests that stand beside those of the mixed model.
    means, slopes : dict of str to Interval
        Mean value and mean slope of each architecture, with intervals over models. `slopes` is
        empty if only one layer was measured.
    contrasts : tuple of ContrastResult
        The planned contrasts.
    models : tuple of ModelSummary
        The value and slope of each model.
    mixed : MixedFit or None
        The mixed model, if it was fitted.
    notes : tuple of str
        Limitations that a reader should know, one line each.
    """

    value: str
    status: str
    reason: str
    architectures: dict[str, int]
    depth: float
    level: float
    test: FTest | None
    slope_test: FTest | None
    checks: tuple[FTest, ...]
    means: dict[str, Interval]
    slopes: dict[str, Interval]
    contrasts: tuple[ContrastResult, ...]
    models: tuple[ModelSummary, ...]
    mixed: MixedFit | None
    notes: tuple[str, ...]

    def _line(self) -> str:
        return self.sentence()

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {part: self.table(part) for part in ("estimates", "tests", "contrasts")}

    def table(self, part: str = "estimates") -> pd.DataFrame:
        """Return one part of the result as a tidy table.

        Parameters
        ----------
        part : {"estimates", "tests", "contrasts", "models", "mixed", "residuals", "influence"}
            The part; "estimates" has the means and slopes of the architectures. The last two are
            diagnostics of the mixed model: what it leaves of each layer, in the unit of the value,
            and how far its estimates move without each model (Cook's distance).

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        DesignError
            If there is no such part.
        """
        if part not in PARTS:
            raise DesignError(f"there is no table {part!r}: use one of {', '.join(PARTS)}")
        makers = {
            "estimates": self._estimates,
            "tests": self._tests,
            "contrasts": self._contrasts,
            "models": self._models,
            "mixed": self._mixed,
            "residuals": self._residuals,
            "influence": self._influence,
        }
        return makers[part]()

    def sentence(self) -> str:
        """Summarise the result in one sentence."""
        counts = f"{_count(len(self.models), 'model')} of {_count(len(self.means), 'architecture')}"
        if self.test is None:
            means = ", ".join(f"{name} {mean.estimate:.3g}" for name, mean in self.means.items())
            return (
                f"No test of architecture on {self.value} ({self.reason}), so the claim is about "
                f"these {counts}; means at depth {self.depth:.2f}: {means}."
            )
        found = "differ" if self.test.p_value < 1 - self.level else "are not shown to differ"
        text = (
            f"Architectures {found} in {self.value} at depth {self.depth:.2f}: "
            f"{_show_test(self.test)}{self._check()} on {counts}"
        )
        if self.slope_test is not None:
            text += f"; in its slope over depth: {_show_test(self.slope_test)}"
        if self.mixed is not None and not self.mixed.usable:
            text += f"; mixed model: {self.mixed.status} ({self.mixed.reason})"
        return text + "."

    def _check(self) -> str:
        own = [check for check in self.checks if check.response == "intercept"]
        return "".join(f" ({_show_test(check)})" for check in own)

    def _estimates(self) -> pd.DataFrame:
        rows = [
            {"architecture": name, "models": self.architectures[name], "response": response}
            | interval.asdict()
            for response, found in zip(RESPONSES, (self.means, self.slopes), strict=True)
            for name, interval in found.items()
        ]
        return pd.DataFrame(rows)

    def _tests(self) -> pd.DataFrame:
        columns = ["method", "response", "statistic", "df_between", "df_within", "p_value"]
        own = [test for test in (self.test, self.slope_test) if test is not None]
        rows = [vars(test) for test in (*own, *self.checks, *self._welch_tests())]
        table = pd.DataFrame(rows, columns=columns)
        table["check"] = np.arange(len(table)) >= len(own)
        return adjust_secondary(table, ~table["check"] & (table["response"] == "intercept"))

    def _welch_tests(self) -> list[FTest]:
        tests = []
        labels = [model.architecture for model in self.models]
        for response in RESPONSES:
            values = [getattr(model, response) for model in self.models]
            found = None if None in values else welch_f(values, labels)
            if found is not None:
                statistic, p_value, between, within = found
                numbers = statistic, between, within, p_value
                tests.append(FTest(response, *numbers, method="Welch F"))
        return tests

    def _contrasts(self) -> pd.DataFrame:
        rows = []
        for one in self.contrasts:
            beside = one.mixed
            rows.append(
                {"contrast": one.contrast.name, "response": one.contrast.response}
                | one.interval.asdict()
                | {"p_value": one.p_value, "p_holm": one.p_holm, "p_bh": one.p_bh}
                | {
                    "mixed_estimate": beside.estimate if beside else float("nan"),
                    "mixed_low": beside.low if beside else float("nan"),
                    "mixed_high": beside.high if beside else float("nan"),
                }
            )
        return pd.DataFrame(rows)

    def _models(self) -> pd.DataFrame:
        rows = []
        for model in self.models:
            row = {
                "architecture": model.architecture,
                "model": model.model,
                "block": model.block,
                "n_layers": model.n_layers,
                "n_sequences": model.n_sequences,
            }
            for name in RESPONSES:
                interval = getattr(model, f"{name}_interval")
                row[name] = getattr(model, name)
                row[f"{name}_low"] = interval.low if interval else None
                row[f"{name}_high"] = interval.high if interval else None
            rows.append(row)
        table = pd.DataFrame(rows)
        return table if any(model.block for model in self.models) else table.drop(columns="block")

    def _mixed(self) -> pd.DataFrame:
        return pd.DataFrame() if self.mixed is None else self.mixed.table(level=self.level)

    def _residuals(self) -> pd.DataFrame:
        if self.mixed is None or not self.mixed.usable:
            return pd.DataFrame()
        rows = self.mixed.parts.design.data[["architecture", "model", "layer"]]
        return rows.assign(fitted=self.mixed.fitted, residual=self.mixed.residuals)

    def _influence(self) -> pd.DataFrame:
        if self.mixed is None or not self.mixed.usable:
            return pd.DataFrame()
        found = self.mixed.influence("model").rename(columns={"level": "model"})
        homes = {model.model: model.architecture for model in self.models}
        found.insert(0, "architecture", [homes[str(name)] for name in found["model"]])
        return found[["architecture", "model", "cook"]]


def adjust_secondary(tests: pd.DataFrame, primary: pd.Series[bool]) -> pd.DataFrame:
    """Add the columns `p_holm` and `primary` to a table of tests.

    Parameters
    ----------
    tests : pandas.DataFrame
        One row for each test, with the columns `check` (True of a test that stands beside another)
        and `p_value`.
    primary : pandas.Series of bool
        True in the row of the primary test.

    Returns
    -------
    pandas.DataFrame
        The table with both columns. `p_holm` is adjusted over the tests that are neither primary
        nor checks, and NaN in the other rows.
    """
    secondary = ~tests["check"].astype(bool) & ~primary
    p_values = tests["p_value"].where(secondary)
    return tests.assign(p_holm=adjust(p_values.tolist()), primary=primary)


def _show_test(test: FTest) -> str:
    p = "p < 0.0001" if test.p_value < 1e-4 else f"p = {test.p_value:.2g}"
    df = f"{test.df_between}, {round(test.df_within, 1):g}"
    return f"{test.method}({df}) = {test.statistic:.1f}, {p}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number > 1 else "")
