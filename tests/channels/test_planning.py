"""How many items: the closed form of normal items, and whether planned studies reach the width."""

import numpy as np
import pytest

from posprobe.channels import gather_variances, plan_items, simulate_items
from posprobe.errors import DesignError
from posprobe.intervals import Goal, Inference
from posprobe.workflows.selfcheck import simulate_channels

CV = 0.5  # of the mask effect over the normal items of selfcheck


def pilot(n, seed=0, items="normal"):
    return gather_variances([simulate_channels(n, np.random.default_rng(seed), items)[0]])


def test_simulated_studies_have_the_estimate_and_the_spread_of_the_measured_one(rng):
    """The population of each study is as uncertain as its items, so two errors add."""
    measured = pilot(40)
    error = measured.pseudo["V_M"].std(ddof=1) / np.sqrt(40)
    for n, spread in ((40, np.sqrt(2)), (160, np.sqrt(1 + 1 / 4))):
        studies = simulate_items(measured, "V_M", n, repetitions=400, rng=rng)
        assert studies.estimate.std() == pytest.approx(spread * error, rel=0.12)
        assert studies.estimate.mean() == pytest.approx(
            measured.estimate["V_M"].item(), abs=0.2 * error
        )
        width = np.median(studies.high - studies.low)
        assert width == pytest.approx(2 * 1.96 * error * np.sqrt(40 / n), rel=0.2)


def test_normal_items_need_as_many_as_the_closed_form_says():
    """V_M is the square of a mean effect, so its relative standard error is 2 CV / sqrt(n)."""
    measured = pilot(100)
    needed, _ = plan_items(measured, "V_M", Goal(precision=0.2, assurance=0.5), repetitions=200)
    spread = measured.pseudo["V_M"].std(ddof=1) / measured.estimate["V_M"].item()
    assert needed["precision"] == pytest.approx((1.96 * spread / 0.2) ** 2, rel=0.1)
    assert needed["precision"] == pytest.approx((1.96 * 2 * CV / 0.2) ** 2, rel=0.3)


def test_the_same_seed_gives_the_same_plan_and_few_items_are_refused():
    goal = Goal(precision=0.5)
    one, other = (plan_items(pilot(12), "V_M", goal, repetitions=50, seed=3) for _ in range(2))
    assert one[0] == other[0]
    assert one[1].equals(other[1])
    with pytest.raises(DesignError, match="7 items are too few to plan from: capture 8 or more"):
        plan_items(pilot(7), "V_M", goal)


@pytest.mark.slow
def test_planned_studies_reach_the_width_in_the_wanted_share_of_cases():
    """The pilot's own chance makes the share of a single plan vary; its mean is the claim."""
    reached = []
    for seed in range(40):
        n = plan_items(pilot(48, seed), "V_M", Goal(precision=0.25), repetitions=150)[0][
            "precision"
        ]
        rng = np.random.default_rng([seed, 1])
        for _ in range(2):
            study = gather_variances([simulate_channels(n, rng, "normal")[0]], Inference(seed=seed))
            found = study.interval("V_M", 0.95)
            reached.append((found.high - found.low) / 2 <= 0.25 * found.estimate)
    assert 0.68 < np.mean(reached) < 0.92
