"""Estimate the difference between two methods and its uncertainty, from the clips that their runs classify correctly.

Runs and clips are both samples: another seed gives another model, and other clips give another accuracy. The results
hold for the methods, that is for new seeds and similar clips, not for these runs only. With one run of each method,
they hold for the two models and similar clips.

Let D be the differences of correct predictions, runs x clips, with values -1, 0 and 1. The model of D is a sum of four
parts: the difference of the methods, a part of each run (a good seed raises all clips a little), a part of each clip
(one method finds it easier than the other), and chance. Clips that are hard for both methods cancel out.

Three to five runs are too few to resample. Intervals from a bootstrap of runs and clips excluded 0 in up to a fifth of
comparisons without a difference if runs varied, and almost never if they did not, because chance counts twice. And no
exchange of three pairs of runs gives a p below 0.25. So the runs are modelled by Student's t, and clips are resampled.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, permutation_test, t

RESAMPLES = 9999


class Difference(NamedTuple):
    """Difference of mean accuracies, method minus reference, its 95 % interval, its p, and the number of run pairs.

    `mean`, `low` and `high` are shares, from -1 to 1.
    """

    mean: float
    low: float
    high: float
    p: float
    runs: int

    @property
    def clear(self):
        """Return True if the interval excludes 0."""
        return self.low > 0 or self.high < 0


def difference(hits, reference, resamples=RESAMPLES, seed=0):
    """Compare two methods on the same clips, run by run, and return a Difference.

    Args:
        hits, reference: bool (R, N), True where one of R runs classified one of N clips correctly. Runs with the same
            number have the same seed.
        resamples: number of draws for the interval and for p.
        seed: seed of the draws.
    """
    differences = np.asarray(hits, float) - np.asarray(reference, float)
    rng = np.random.default_rng(seed)
    low, high = interval(differences, resamples, rng)
    return Difference(differences.mean(), low, high, p_value(differences, resamples, rng), len(differences))


def interval(differences, resamples, rng):
    """Return the 95 % interval (low, high) of the mean of differences (R, N), over runs and clips.

    A draw is the mean, plus an error of the runs, plus an error of the clips. The error of the runs is Student's t with
    R - 1 degrees of freedom, times the standard error of the runs' means. The error of the clips is the mean of N clips
    drawn with replacement from the clips' parts. The part of a clip is its mean over the runs, minus the overall mean,
    shrunk by the variance that chance adds to it. Without shrinking, chance would count twice, because the runs' means
    include it too (Davison and Hinkley, "Bootstrap Methods and their Application", 3.8).
    """
    runs, clips = differences.shape
    mean, clip_parts = differences.mean(), differences.mean(axis=0) - differences.mean()
    draws = np.full(resamples, mean)
    if runs > 1:
        run_means = differences.mean(axis=1)
        chance = differences - run_means[:, None] - clip_parts
        variance = np.sum(chance**2) / (runs - 1) / max(clips - 1, 1) / runs  # of a clip's mean over runs, by chance
        between = clip_parts.var(ddof=1) if clips > 1 else 0
        clip_parts = clip_parts * np.sqrt(max(1 - variance / between, 0)) if between else clip_parts
        draws += run_means.std(ddof=1) / np.sqrt(runs) * t.rvs(runs - 1, size=resamples, random_state=rng)
    if clip_parts.any():
        resampled = bootstrap((clip_parts,), np.mean, n_resamples=resamples, method="percentile", rng=rng)
        draws += resampled.bootstrap_distribution
    return tuple((np.percentile(draws, [2.5, 97.5]).round(12) + 0.0).tolist())  # rounding errors around 0 become 0


def p_value(differences, resamples, rng):
    """Return the two-sided p of a paired permutation test that the mean of differences (R, N) is 0.

    The test exchanges the two methods clip by clip, in all runs at once, which changes the sign of a clip's
    differences. The statistic increases with the t statistic of the runs' means. So the part of a run is not mistaken
    for a difference of the methods, because it increases the denominator as much as the mean. The test is exact if the
    runs of a method differ by chance only. With one run, the statistic is the absolute mean.
    """
    runs, clips = differences.shape

    def statistic(signs, axis):
        sums = signs @ differences.T  # integers, so that ties are exact
        total = sums.sum(axis=-1)
        spread = runs * (sums**2).sum(axis=-1) - total**2
        return abs(total) / (np.sqrt(spread) + 1e-9)

    return permutation_test(
        (np.ones(clips),),
        statistic,
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        n_resamples=resamples,
        batch=1000,
        rng=rng,
    ).pvalue.item()
