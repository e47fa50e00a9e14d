"""Find clips that are in both the training and the test list. They inflate test accuracy."""

import sys


def warn_of_leaks(train, test):
    """Warn of the clips that are in both lists of Clip, with their number and the first name."""
    ids = {clip.id for clip in train}
    shared = [clip.id for clip in test if clip.id in ids]
    if shared:
        print(
            f"warning: {len(shared)} clip(s) are in both the training and the test list, the first is {shared[0]}; "
            "test accuracy is too high by them",
            file=sys.stderr,
        )
