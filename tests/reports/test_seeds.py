"""Means, spread, and the rule that tells a lead from noise."""

import random

import pytest
from scipy.stats import ttest_ind, ttest_rel

from reports.seeds import Lead, Seeds, lead, ranked


def seeds(*losses: float, name: str = "a", failed: int = 0) -> Seeds:
    return Seeds(name, {}, dict(enumerate(losses)), failed)


def test_mean_and_spread() -> None:
    found = seeds(1.0, 2.0, 3.0)
    assert (found.mean, found.sd, found.n) == (2.0, 1.0, 3)
    assert seeds(1.5).sd is None


def test_a_lead_by_hand() -> None:
    """Differences of 0, 1 and 2: mean 1, standard deviation 1; t of 2 degrees of freedom at 97.5 % is 4.3027."""
    near = lead(seeds(1.0, 2.0, 3.0), seeds(1.0, 3.0, 5.0, name="b"))
    assert near == Lead("b", 1.0, 3, 2, pytest.approx(4.3027 / 3**0.5, abs=1e-4), False)
    far = lead(seeds(1.0, 2.0, 3.0), seeds(3.0, 5.0, 7.0))
    assert (far.nats, far.margin, far.beyond_noise) == (3.0, near.margin, True)


@pytest.mark.parametrize("constant", [0.025, 0.002])
def test_the_rule_is_that_of_scipy(constant: float) -> None:
    """A small difference is found where every order of the data has it, however far the orders lie apart. A test of
    two samples, which does not know the pairs, does not find it: the orders are noise to it."""
    a = [1.52, 1.71, 1.63, 1.85]
    b = [loss + constant + own for loss, own in zip(a, (0.003, -0.002, 0.001, -0.002), strict=True)]
    found, paired = lead(seeds(*a), seeds(*b)), ttest_rel(b, a)
    low, high = paired.confidence_interval(0.95)
    assert (found.nats - found.margin, found.nats + found.margin) == pytest.approx((low, high))
    assert found.beyond_noise is bool(paired.pvalue < 0.05) is (constant == 0.025)
    assert ttest_ind(b, a).pvalue > 0.5


def test_noise_that_is_not_shared_by_a_pair_stays_noise() -> None:
    """The same losses as above, by other seeds."""
    a, b = [1.52, 1.71, 1.63, 1.85], [1.733, 1.548, 1.873, 1.656]
    assert sum(b) / 4 - sum(a) / 4 == pytest.approx(0.025)
    assert lead(seeds(*a), seeds(*b)).beyond_noise is False


def share_found(better: float) -> float:
    """How often the lead of one of the two best of 24 trials, by their own seed, is more than noise. One trial is truly
    `better` than the others, which are equally good; all three seeds move all trials alike, and each one a little."""
    draw, found = random.Random(1), 0
    for _ in range(1000):
        orders = [draw.gauss(0, 5) for _ in range(3)]
        best = sorted((orders[0] + truth + draw.gauss(0, 1), truth) for truth in [-better, *[0.0] * 23])[:2]
        again = [seeds(own, *(order + truth + draw.gauss(0, 1) for order in orders[1:])) for own, truth in best]
        found += lead(*ranked(again)).beyond_noise is True
    return found / 1000


def test_that_their_own_seed_chose_them_raises_no_false_alarms() -> None:
    assert share_found(0.0) < 0.05 < 0.9 < share_found(8.0)


def test_only_seeds_that_both_have_count() -> None:
    winner, other = Seeds("a", {}, {0: 1.0, 2: 2.0, 3: 9.0}), Seeds("b", {}, {0: 1.5, 1: 0.0, 2: 3.0}, failed=1)
    found = lead(winner, other)
    assert (found.nats, found.pairs, found.ahead) == (0.75, 2, 2)
    assert found.margin == pytest.approx(12.7062 * 0.25, abs=1e-4)  # √(0.125/2), one degree of freedom


def test_no_spread_at_all() -> None:
    assert lead(seeds(1.0, 1.0), seeds(1.5, 1.5)).beyond_noise is True
    assert lead(seeds(1.0, 1.0), seeds(1.0, 1.0)).beyond_noise is False


def test_a_single_pair_tells_nothing() -> None:
    assert lead(seeds(1.0), seeds(2.0, 2.1, name="b")) == Lead("b", 1.0, 1, 1, None, None)


def test_the_lowest_mean_is_first_and_what_failed_last() -> None:
    found = ranked([seeds(1.0, 3.0), seeds(1.5, 1.6, name="b"), seeds(1.0, name="c", failed=1)])
    assert [each.name for each in found] == ["b", "a", "c"]
