"""Means, spread, and the rule that tells a lead from noise."""

import math

import pytest

from reports.seeds import Seeds, lead, ranked


def test_mean_and_spread() -> None:
    seeds = Seeds("a", {}, [1.0, 2.0, 3.0])
    assert (seeds.mean, seeds.sd, seeds.n) == (2.0, 1.0, 3)
    assert Seeds("a", {}, [1.5]).sd is None


def test_a_lead_by_hand() -> None:
    """Both variances are 1, so the standard error is √(2/3); t of 4 degrees of freedom at 97.5 % is 2.7764."""
    near = lead(Seeds("a", {}, [1.0, 2.0, 3.0]), Seeds("b", {}, [2.0, 3.0, 4.0]))
    assert (near.over, near.nats, near.beyond_noise) == ("b", 1.0, False)
    assert near.standard_error == pytest.approx(math.sqrt(2 / 3))
    assert near.t == pytest.approx(math.sqrt(1.5))
    assert near.needed == pytest.approx(2.7764, abs=1e-4)
    far = lead(Seeds("a", {}, [1.0, 2.0, 3.0]), Seeds("b", {}, [4.0, 5.0, 6.0]))
    assert far.t == pytest.approx(3 * math.sqrt(1.5)) and far.beyond_noise is True


@pytest.mark.parametrize(("b", "beyond"), [([0.27, 0.24, 0.29], False), ([0.28, 0.25, 0.29], True)])
def test_the_rule_is_that_of_scipy(b: list[float], beyond: bool) -> None:
    from scipy.stats import ttest_ind

    a = [0.21, 0.25, 0.19, 0.22]
    found, expected = lead(Seeds("a", {}, a), Seeds("b", {}, b)), ttest_ind(b, a)
    assert found.t == pytest.approx(expected.statistic)
    assert found.beyond_noise is bool(expected.pvalue < 0.05) is beyond


def test_the_variances_are_weighted_by_their_seeds() -> None:
    """(2·1 + 1·4.5) / 3, not their plain mean."""
    found = lead(Seeds("a", {}, [1.0, 2.0, 3.0]), Seeds("b", {}, [4.0, 7.0]))
    assert found.standard_error == pytest.approx(math.sqrt(6.5 / 3 * (1 / 3 + 1 / 2)))


def test_no_spread_at_all() -> None:
    same, other = Seeds("a", {}, [1.0, 1.0]), Seeds("b", {}, [1.5, 1.5])
    assert lead(same, other).beyond_noise is True
    assert lead(same, same).beyond_noise is False


def test_a_single_loss_tells_nothing() -> None:
    found = lead(Seeds("a", {}, [1.0]), Seeds("b", {}, [2.0, 2.1]))
    assert (found.nats, found.t, found.beyond_noise) == (pytest.approx(1.05), None, None)


def test_the_lowest_mean_is_first_and_what_failed_last() -> None:
    found = ranked([Seeds("a", {}, [1.0, 3.0]), Seeds("b", {}, [1.5, 1.6]), Seeds("c", {}, [1.0], failed=1)])
    assert [each.name for each in found] == ["b", "a", "c"]
