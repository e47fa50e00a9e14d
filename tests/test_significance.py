"""Check how sure a difference is: its interval and p, against simulations and against scipy."""

import numpy as np
import pytest
from scipy import stats

from analysis.significance import difference


def synthetic(rng, runs, clips, of_runs, advantage=0.0):
    """Return hits (R, N) of two methods: clips are hard or easy for both, every run has a level of its own."""
    difficulty = rng.normal(1, 2, clips)
    levels = rng.normal(0, of_runs, (2, runs, 1)) + [[[advantage]], [[0]]]
    return rng.random((2, runs, clips)) < 1 / (1 + np.exp(-difficulty - levels))


@pytest.mark.parametrize(("runs", "of_runs"), [(3, 0.0), (3, 0.3), (5, 0.3)])
def test_false_alarms_are_five_in_a_hundred(runs, of_runs):
    rng, alarms = np.random.default_rng(1), []
    for seed in range(500):
        found = difference(*synthetic(rng, runs, 60, of_runs), resamples=499, seed=seed)
        alarms.append((found.p <= 0.05, found.clear))
    assert all(0.03 <= share <= 0.08 for share in np.mean(alarms, axis=0)), np.mean(alarms, axis=0)


def test_a_known_difference_is_found_and_lies_in_the_interval():
    rng = np.random.default_rng(2)
    many = synthetic(rng, 1000, 2000, 0.1, advantage=0.6).mean(axis=(1, 2))
    true, found = many[0] - many[1], []
    for seed in range(200):
        found.append(difference(*synthetic(rng, 5, 200, 0.1, advantage=0.6), resamples=499, seed=seed))
    assert np.mean([each.mean for each in found]) == pytest.approx(true, abs=0.005)
    assert 0.91 <= np.mean([each.low <= true <= each.high for each in found]) <= 0.99
    assert np.mean([each.p <= 0.05 for each in found]) > 0.8 and np.mean([each.clear for each in found]) > 0.8


def test_one_run_each_agrees_with_scipys_binomial_test_and_bootstrap():
    """Check that without runs to compare p is of McNemar's exact test, the interval of the plain bootstrap of clips."""
    hits, reference = (np.array([list(map(int, row))], bool) for row in ("111111111101", "100101000011"))
    few = difference(hits, reference)
    assert few.p == pytest.approx(stats.binomtest(7, 8).pvalue) and few.mean == pytest.approx(6 / 12)
    hits, reference = synthetic(np.random.default_rng(3), 1, 300, 0.1, advantage=0.5)
    differences = hits[0] * 1.0 - reference[0]
    plain = stats.bootstrap((differences,), np.mean, method="percentile", rng=4).confidence_interval
    many = difference(hits, reference)
    assert (many.low, many.high) == pytest.approx(tuple(plain), abs=0.01) and many.mean == differences.mean()


def test_runs_that_differ_alike_on_all_clips_have_students_interval():
    means = np.array([1, 0, 0, 1, 1])
    hits = np.repeat(means[:, None] == 1, 100, axis=1)
    found, plain = difference(hits, np.zeros_like(hits)), stats.ttest_1samp(means, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(plain), abs=0.03)


def test_equal_runs_exchanged_methods_and_an_interval_that_ends_at_0():
    hits = np.random.default_rng(5).random((3, 50)) < 0.9
    assert difference(hits, hits) == (0, 0, 0, 1, 3) and not difference(hits, hits).clear
    hits, reference = synthetic(np.random.default_rng(6), 3, 200, 0.1, advantage=0.8)
    one, other = difference(hits, reference), difference(reference, hits)
    assert one.mean == -other.mean and one.p == other.p and one.low == pytest.approx(-other.high, abs=0.01)
    hits, reference = np.zeros((2, 1, 60), bool)  # two clips gained and eight lost: rounding could put the end below 0
    hits[0, :2], reference[0, -8:] = True, True
    found = difference(hits, reference)
    assert found.high == 0 and not found.clear
