"""Show progress: as a bar in a terminal, else as one line per minute."""

import sys

from tqdm import tqdm

EVERY = 60  # seconds between two lines


class Lines(tqdm):
    """A tqdm for log files: it prints a line every minute instead of a moving bar."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs | {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "ncols": 0})

    def display(self, msg=None, pos=None):
        if self.n < (self.total or 0) and not self.disable:
            print(str(self), file=self.fp, flush=True)
        return True

    def close(self):
        self.disable = True


def progress_bar(*args, **kwargs):
    """Return a tqdm bar if stderr is a terminal, else Lines; the arguments are those of tqdm."""
    return (tqdm if sys.stderr.isatty() else Lines)(*args, **kwargs)
