"""How far something is: a bar in a terminal, elsewhere a line a minute."""

import sys

from tqdm import tqdm

EVERY = 60  # s between two lines


class Lines(tqdm):
    """tqdm for a log: a line every minute, in place of a bar that moves."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs | {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "ncols": 0})

    def display(self, msg=None, pos=None):
        if self.n < (self.total or 0) and not self.disable:
            print(str(self), file=self.fp, flush=True)
        return True

    def close(self):
        self.disable = True


def progress_bar(*args, **kwargs):
    """tqdm's bar where stderr is a terminal, else Lines; takes what tqdm takes."""
    return (tqdm if sys.stderr.isatty() else Lines)(*args, **kwargs)
