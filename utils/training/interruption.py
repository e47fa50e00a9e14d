"""Signals that end a job, heeded where training can be saved."""

import os
import signal
import time

from utils.errors import Interrupted, heed
from utils.training import distributed


class Interruption:
    """A context in which the first of utils.errors.SIGNALS waits for `check`; a second one ends the process as usual.

    The weights are in order between two steps only, so that is where a run is stopped. A cluster may send one signal to
    a script and to what it runs, and the script passes it on: what comes within TOGETHER is the same one. A signal that
    was ignored when the process began, SIGHUP under nohup, is left alone.
    """

    TOGETHER = 2  # s

    def __init__(self):
        self.received = None

    def __enter__(self):
        self.handlers = heed(self.receive)
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number, _):
        if self.received is None:
            self.received, self.since = number, time.monotonic()
        elif time.monotonic() > self.since + self.TOGETHER:
            self.__exit__()
            os.kill(os.getpid(), number)

    def check(self):
        """Raise Interrupted if a signal has come, to any of several processes: all of them check, and stop together."""
        if distributed.anywhere(self.received is not None):
            raise Interrupted(self.received or signal.SIGTERM)

    def watch(self, batches):
        """Yield from `batches`, with a check before each one."""
        for batch in batches:
            self.check()
            yield batch
