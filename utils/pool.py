"""Work on many clips at once: in parallel, and whatever becomes of one of them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

IN_FLIGHT = 2  # jobs handed to the pool per worker: enough to keep it busy, few to repeat when a worker crashes


class ClipError(Exception):
    """A clip that cannot be processed: "<reason>" or "<reason>: <details>". The other clips go on."""


def process_clips(function, jobs, workers=None, start=None):
    """`each_clip` for a function that returns "done" or "already there".

    Returns:
        (Counter of results, {clip name: reason} of the failures).
    """
    results, failures = Counter(), {}
    for name, result in each_clip(function, jobs, workers, start=start):
        if isinstance(result, ClipError):
            failures[name] = str(result)
        else:
            results[result] += 1
    return results, dict(sorted(failures.items()))


def each_clip(function, jobs, workers=None, description=None, start=None):
    """Call `function(*arguments)` for every job in parallel, with a progress bar.

    A ClipError or OSError concerns its clip alone, and so does a crash of the process that works on it.

    Args:
        function: a top-level function.
        jobs: {clip name: arguments}.
        workers: processes; None for one per core.
        description: what the progress bar says.
        start: a top-level function that every process calls first.

    Yields:
        (clip name, what the function returned, or the ClipError), in the order in which they end.
    """
    waiting, suspects = list(reversed(jobs)), []
    with tqdm(total=len(jobs), desc=description, unit="clip", disable=not sys.stderr.isatty()) as progress:
        while waiting or suspects:
            alone = bool(suspects)  # a crash takes the clips in flight with it; one by one they show who it was
            names, size = ([suspects.pop()], 1) if alone else (waiting, workers or os.cpu_count())
            for name, future in run_pool(function, jobs, names, size, start):
                try:
                    result = future.result()
                except BrokenProcessPool:
                    if not alone:
                        suspects.append(name)
                        continue
                    result = ClipError("crashed: its decoder took the process down; download it again")
                except ClipError as error:
                    result = error
                except OSError as error:
                    result = ClipError(error.strerror or str(error))
                progress.update()
                yield name, result


def run_pool(function, jobs, waiting, workers, start):
    """Run the jobs that `waiting` names, taking them off its end, until it is empty or a process crashes.

    Yields:
        (name, its finished future); after a crash that of each job in flight raises BrokenProcessPool.
    """
    in_flight = {}
    with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(start,)) as pool:
        try:
            while waiting or in_flight:
                while waiting and len(in_flight) < IN_FLIGHT * workers:
                    future = pool.submit(function, *jobs[waiting[-1]])
                    in_flight[future] = waiting.pop()
                for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                    yield in_flight.pop(future), future
        except BrokenProcessPool:  # from submit
            yield from ((name, future) for future, name in in_flight.items())
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker(start):
    """Leave Ctrl-C to the parent, which lets the clips in flight end, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if start:
        start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
