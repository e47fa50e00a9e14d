"""SIGINT and SIGTERM, heeded where training can be saved."""

import signal

from utils.errors import Interrupted
from utils.training import distributed


class Interruption:
    """A context in which the first SIGINT or SIGTERM waits for `check`; a second one ends the process as usual.

    The weights are in order between two steps only, so that is where a run is stopped.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = None

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self.receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number, _):
        self.received = number
        for each, handler in self.handlers.items():
            signal.signal(each, handler)

    def check(self):
        """Raise Interrupted if a signal has come, to any of several processes: all of them check, and stop together."""
        if distributed.anywhere(self.received is not None):
            raise Interrupted(self.received or signal.SIGTERM)

    def watch(self, batches):
        """Yield from `batches`, with a check before each one."""
        for batch in batches:
            self.check()
            yield batch
