"""Claims that answer one question: p-values that say what the intervals say, and are adjusted."""

import dataclasses
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import synthetic
from scipy import stats

from posprobe.analysis import analyze_files, sort_files
from posprobe.claims import FAMILIES, make_claims
from posprobe.claims.families import adjusted
from posprobe.claims.verdicts import above, below, found, identity, make_claim, within
from posprobe.intervals import (
    Interval,
    bootstrap_interval,
    cluster_weights,
    fieller_ratio,
    holm,
    mean_interval,
)

IDENTITIES = {
    "mask_isolated", "residual_opened", "layer_0_residual", "offsets_only", "closed_system",
    "fingerprint_constant", "fingerprint_varies",
}  # fmt: skip
DECIDED = {"supported", "contradicted", "negligible"}
T = partial(stats.t.ppf, df=29)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    stores = synthetic.study_files(tmp_path_factory.mktemp("study"), np.random.default_rng(0))
    return analyze_files(sort_files(stores.values()))


@pytest.fixture(scope="module")
def claims(analysis):
    return make_claims(analysis)


def an_interval(estimate, error, level=0.95):
    """A t interval of 30 items with the p-values that go with it."""
    half = T((1 + level) / 2) * error
    low, high = estimate - half, estimate + half

    def test(value):
        return 2 * stats.t.sf(abs(estimate - value) / error, 29)

    return Interval(estimate, low, high, level, "t", "made up", 30, test)


def a_claim(name, p_value, family="channels"):
    """A claim that an effect of 1 is above 0, with the error that gives it this p-value."""
    interval = an_interval(1.0, 1 / T(1 - p_value / 2))
    claim = make_claim(name, "An effect.", interval, "nats", above(interval, 0.0), "")
    assert claim.p_value == pytest.approx(p_value)
    return dataclasses.replace(claim, family=family)


def test_claims_of_a_question_are_neighbours_and_every_question_has_words(claims):
    families = [claim.family for claim in claims]
    assert list(dict.fromkeys(families)) == [name for name in FAMILIES if name in families]
    changes = sum(a != b for a, b in pairwise(families))
    assert changes == len(set(families)) - 1


def test_a_verdict_stands_exactly_where_its_p_value_is_below_the_level(claims):
    tested = [claim for claim in claims if claim.p_value is not None]
    assert len(tested) > 6
    for claim in tested:
        assert (claim.verdict in DECIDED) == (claim.p_value < 1 - claim.ci_level), claim.id
        assert not claim.p_note


def test_p_values_are_adjusted_within_their_family(claims):
    for family in FAMILIES:
        tested = [c for c in claims if c.family == family and c.p_value is not None]
        if tested:
            expected = holm([claim.p_value for claim in tested])
            np.testing.assert_allclose([claim.p_adjusted for claim in tested], expected)


def test_identities_and_what_was_not_tested_have_no_p_value_and_say_why(claims):
    for claim in claims:
        if claim.p_value is None:
            assert claim.p_adjusted is None
            assert claim.verdict_adjusted == claim.verdict
            assert claim.p_note or claim.verdict == "not_applicable"
    named = {claim.id: claim for claim in claims}
    for name in IDENTITIES:
        assert named[name].p_note == "an identity, judged against rounding", name


def test_a_verdict_that_hangs_on_adjustment_is_not_counted():
    alone, other = adjusted([a_claim("a", 0.03), a_claim("b", 0.5)])
    assert (alone.verdict, alone.verdict_adjusted) == ("supported", "inconclusive")
    assert (alone.p_adjusted, other.p_adjusted) == pytest.approx((0.06, 0.5))
    first, second = adjusted([a_claim("a", 0.03), a_claim("b", 0.01)])
    assert [first.verdict_adjusted, second.verdict_adjusted] == ["supported"] * 2
    elsewhere, _ = adjusted([a_claim("a", 0.03), a_claim("b", 0.5, family="probes")])
    assert (elsewhere.p_adjusted, elsewhere.verdict_adjusted) == (
        pytest.approx(0.03),
        "supported",
    )


# --- the p-value of each kind of verdict is the level at which it would be lost


@pytest.mark.parametrize(
    ("estimate", "error", "judge"),
    [
        (0.3, 0.1, partial(above, bound=0.1)),
        (-0.3, 0.1, partial(above, bound=0.0)),
        (0.01, 0.004, partial(below, bound=0.02)),
        (0.4, 0.05, partial(within, low=0.2, high=0.6)),
        (0.9, 0.2, partial(within, low=0.2, high=0.6)),
        (0.1, 0.2, partial(within, low=0.2, high=0.6)),
        (2e-5, 3e-5, partial(found, unit="nats^2")),
        (4e-4, 1e-4, partial(found, unit="nats^2", floor=1.5e-4)),
        (1e-4, 3e-4, partial(found, unit="nats^2")),
    ],
)
def test_at_the_level_of_its_p_value_a_verdict_turns(estimate, error, judge):
    p_value = judge(an_interval(estimate, error)).p_value
    levels = [1 - p_value + change for change in (-1e-6, 1e-6)]
    surer, less_sure = (judge(an_interval(estimate, error, level)).verdict for level in levels)
    assert surer in DECIDED
    assert less_sure == "inconclusive"


def test_what_is_no_larger_than_rounding_has_no_p_value():
    judged = found(an_interval(2e-4, 1e-6), "nats^2", floor=3e-4)
    assert judged == ("inconclusive", None, "no larger than its rounding")
    assert identity(above(an_interval(1.0, 0.1), 0.0)).p_value is None


# --- over many studies


def study(rng):
    """Seven claims of one family, all on the edge: their estimands are at their bounds."""
    items = rng.normal(size=(32, 1)) + rng.exponential(size=(32, 6))
    means = [mean_interval(column - 1, estimand="mean") for column in items.T[:3]]
    draws = cluster_weights(32, 400, rng) @ (items - 1) / 32
    means += [
        bootstrap_interval(draws[:, k], items[:, k].mean() - 1, n=32, estimand="mean")
        for k in (3, 4)
    ]
    judged = [above(interval, 0.0) for interval in means]
    ratio = fieller_ratio(5 + items[:, 4], 5 + items[:, 5], quantity="ratio", estimand="ratio")
    judged += [above(ratio, 1.0), within(means[0], -np.inf, 0.0)]
    intervals = [*means, ratio, means[0]]
    claims = [
        dataclasses.replace(make_claim(str(k), "", interval, "1", one, ""), family="channels")
        for k, (interval, one) in enumerate(zip(intervals, judged, strict=True))
    ]
    return adjusted(claims)


@pytest.mark.slow
def test_a_family_without_effects_is_decided_wrongly_in_one_study_of_twenty():
    """Counted by its own intervals it is four times as often."""
    own, counted = np.zeros(1000), np.zeros(1000)
    for k, seed in enumerate(np.random.SeedSequence(0).spawn(1000)):
        claims = study(np.random.default_rng(seed))
        own[k] = any(claim.verdict != "inconclusive" for claim in claims)
        counted[k] = any(claim.verdict_adjusted != "inconclusive" for claim in claims)
    assert counted.mean() <= 0.07
    assert own.mean() > 0.15
