"""How sure a difference between two methods is, from which clips each of their runs got right.

Runs are few and clips are many, and both are drawn: another seed gives another model, and other clips another accuracy.
What is said here is of methods, that is of new seeds and of clips like these, not of the very runs. Of one run each, it
is of these two models and of clips like these.

Let D be the differences of right answers, runs x clips, -1, 0 or 1. D is taken as the sum of the difference looked for,
a part of each run (a good seed raises all clips a little), a part of each clip (what one method finds easier than the
other), and chance. Clips that are hard for all cancel out.

Three to five runs cannot be resampled as they are: intervals from bootstrapping both levels left out 0 in up to a fifth
of comparisons without a difference where runs varied, and nearly never where they did not (chance counts twice), and no
exchange of three pairs of runs gives a p below 0.25. So Student's t stands for the runs, and clips are resampled.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, permutation_test, t

RESAMPLES = 9999


class Difference(NamedTuple):
    """Mean accuracy less that of the reference, its 95 % interval, and p; `runs` of each method were paired."""

    mean: float
    low: float
    high: float
    p: float
    runs: int

    @property
    def clear(self):
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(hits, reference, resamples=RESAMPLES, seed=0):
    """Compare two methods on the same clips, run by run.

    Args:
        hits, reference: bool (R, N), what R runs of either got right of N clips; runs with one number have one seed.
        resamples: how many draws interval and p are made of, which follow `seed`.
    """
    differences = np.asarray(hits, float) - np.asarray(reference, float)
    rng = np.random.default_rng(seed)
    low, high = interval(differences, resamples, rng)
    return Difference(differences.mean(), low, high, p_value(differences, resamples, rng), len(differences))


def interval(differences, resamples, rng):
    """95 % interval of the mean of differences (R, N) by a bootstrap of two levels, runs and clips -> (low, high).

    A draw is the mean, and an error of the runs, and one of the clips. Runs: Student's t with R - 1 degrees of freedom
    times the standard error of the runs' means. Clips: the mean of as many clips drawn with replacement, each with its
    part of the differences, its mean over the runs shrunk by what chance adds to it, so that chance, which the runs'
    means have in them, is not counted twice (Davison and Hinkley, "Bootstrap Methods and their Application", 3.8).
    """
    runs, clips = differences.shape
    mean, of_clips = differences.mean(), differences.mean(axis=0) - differences.mean()
    draws = np.full(resamples, mean)
    if runs > 1:
        of_runs = differences.mean(axis=1)
        chance = differences - of_runs[:, None] - of_clips
        variance = np.sum(chance**2) / (runs - 1) / max(clips - 1, 1) / runs  # of a clip's mean over runs, by chance
        between = of_clips.var(ddof=1) if clips > 1 else 0
        of_clips = of_clips * np.sqrt(max(1 - variance / between, 0)) if between else of_clips
        draws += of_runs.std(ddof=1) / np.sqrt(runs) * t.rvs(runs - 1, size=resamples, random_state=rng)
    if of_clips.any():
        drawn = bootstrap((of_clips,), np.mean, n_resamples=resamples, method="percentile", rng=rng)
        draws += drawn.bootstrap_distribution
    return tuple((np.percentile(draws, [2.5, 97.5]).round(12) + 0.0).tolist())  # an end that is 0 but for rounding is 0


def p_value(differences, resamples, rng):
    """p of a paired permutation test that the mean of differences (R, N) is 0, two-sided.

    The two methods are exchanged clip by clip, in all runs at once, which changes the sign of a clip's differences. The
    statistic grows with t of the runs' means: a part of each run, which an exchange of clips takes away, does not pass
    for a difference, since it widens the denominator as much as it moves the mean. Exact where runs of one method
    differ by chance alone. Of one run, it is the mean.
    """
    runs, clips = differences.shape

    def statistic(signs, axis):
        sums = signs @ differences.T  # whole numbers, so that ties are ties
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
