"""Clips that are in training and in test, by name or by content: accuracies on test are too high by them."""

import hashlib
import os
import sys
from collections import defaultdict


def warn_of_leaks(train, test):
    """Count on stderr the clips of two lists of Clip that are in both, and those of either that are the same files."""
    ids = {clip.id for clip in train}
    shared = [clip.id for clip in test if clip.id in ids]
    if shared:
        warn(f"{len(shared)} clip(s) are in training and in test, {shared[0]} first; accuracies are too high by them")
    try:
        twins = twins_of({clip.id: clip for clip in (*train, *test)}.values())
    except OSError:  # a file has gone since it was decoded, which its reader tells
        twins = []
    if twins:
        names = f"{twins[0][0]} as {twins[0][1]} first"
        across = sum(len({clip_id in ids for clip_id in pair}) > 1 for pair in twins)
        warn(f"{len(twins)} clip(s) are the same files as another one, {names}; {across} as one of the other split")


def warn(words):
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        print(f"warning: {words}", file=sys.stderr)


def twins_of(clips):
    """[(id, id of an earlier clip with the same bytes of sound and of the first frame), ...]."""
    by_size = defaultdict(list)
    for clip in clips:
        by_size[tuple(map(os.path.getsize, clip.files()[:2]))].append(clip)
    twins = []
    for same_size in by_size.values():
        first = {}
        for clip in same_size if len(same_size) > 1 else ():
            earlier = first.setdefault(content(clip), clip.id)
            twins += [(clip.id, earlier)] if earlier != clip.id else []
    return twins


def content(clip):
    """A digest of a clip's sound and first frame."""
    digest = hashlib.blake2b()
    for path in clip.files()[:2]:
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.digest()
