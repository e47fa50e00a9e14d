"""Process many clips in parallel, so that a clip that fails, crashes or hangs does not affect the others."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from pebble import ProcessExpired, ProcessPool

from utils.errors import warn_once
from utils.progress import progress_bar

IN_FLIGHT = 2  # jobs per worker in the pool: enough to keep it busy, few to wait for after an interruption
TIME_LIMIT = 300  # seconds per clip; a decoder needs a few, so one that takes longer hangs


class ClipError(Exception):
    """A clip that cannot be processed: "<reason>" or "<reason>: <details>". Processing continues with other clips."""


def cores():
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def process_clips(function, jobs, workers=None, start=None, limit=TIME_LIMIT):
    """Run `each_clip` and count its results; `function` returns "done" or "already there".

    Returns:
        (Counter of results, {clip name: reason} of the failures).
    """
    results, failures = Counter(), {}
    for name, result in each_clip(function, jobs, workers, start=start, limit=limit):
        if isinstance(result, ClipError):
            failures[name] = str(result)
        else:
            results[result] += 1
    return results, dict(sorted(failures.items()))


def each_clip(function, jobs, workers=None, description=None, start=None, limit=TIME_LIMIT):
    """Call `function(*arguments)` for every job in parallel, with a progress bar.

    An exception, a crash or a hang of a worker affects only the clip that it processes. A new worker replaces one that
    crashed or hung.

    Args:
        function: a top-level function.
        jobs: {clip name: arguments}.
        workers: number of worker processes; None for one per core that this process may use.
        description: text of the progress bar.
        start: a top-level function that every worker calls first.
        limit: seconds per clip, after which its worker is ended; None for no limit; or a function of a job's arguments.

    Yields:
        (clip name, result of the function or ClipError), in the order in which clips are finished.
    """
    waiting, retried = list(reversed(jobs)), set()
    with progress_bar(total=len(jobs), desc=description, unit="clip") as progress:
        if waiting and (reason := process_fault()):
            warn_once(f"{reason}; clips are processed one after the other, without worker processes")
            for name in jobs:
                yield name, attempt(function, jobs[name])
                progress.update()
            return
        while waiting:
            for name, future in run_pool(function, jobs, waiting, workers or cores(), start, limit):
                try:
                    result = future.result()
                except BrokenProcessPool:  # a worker died between two clips, so any clip in flight may be the cause
                    if name not in retried:
                        retried.add(name)
                        waiting.append(name)
                        continue
                    result = ClipError("crashed: its worker died twice; download it again")
                except ProcessExpired as error:
                    result = ClipError(f"crashed: its decoder ended {exit_reason(error.exitcode)}; download it again")
                except concurrent.futures.TimeoutError:
                    seconds = limit_of(limit, jobs[name])
                    result = ClipError(f"hung: its decoder did not end within {seconds:g} s; download it again")
                progress.update()
                yield name, result


def process_fault():
    """Return why no worker process can be started here, or "" if workers can be started."""
    try:
        multiprocessing.Lock()  # on Linux, locks are in /dev/shm
    except OSError as error:
        return f"/dev/shm: {error.strerror}"
    return ""


def run_pool(function, jobs, waiting, workers, start, limit):
    """Run the jobs that `waiting` names, from its end, until it is empty or the pool breaks.

    Yields:
        (name, finished future). If the pool breaks, the future of each job in flight raises BrokenProcessPool.
    """
    in_flight = {}
    with ProcessPool(workers, initializer=start_worker, initargs=(start,)) as pool:
        while pool.active and (waiting or in_flight):
            with suppress(RuntimeError):  # the pool has just broken
                while waiting and len(in_flight) < IN_FLIGHT * workers:
                    job = jobs[waiting[-1]]
                    future = pool.schedule(attempt, (function, job), timeout=limit_of(limit, job))
                    in_flight[future] = waiting.pop()
            done = concurrent.futures.wait(in_flight, 1, concurrent.futures.FIRST_COMPLETED).done
            yield from ((in_flight.pop(future), future) for future in done)
    for future, name in in_flight.items():
        if not future.done():
            future.set_exception(BrokenProcessPool())
        yield name, future


def limit_of(limit, arguments):
    """Return the time limit of a job in seconds; `limit` is as for `each_clip`."""
    return limit(*arguments) if callable(limit) else limit


def attempt(function, arguments):
    """Return the result of the function; return any exception as a ClipError, since it concerns this clip alone."""
    try:
        return function(*arguments)
    except ClipError as error:
        return error
    except OSError as error:
        return ClipError(error.strerror or str(error))
    except Exception as error:  # a decoder can raise any exception on a damaged file
        return ClipError(f"not processed: {type(error).__name__}: {error}; check this file, or leave it out")


def exit_reason(exitcode):
    """Return how a process ended, in words."""
    return f"with status {exitcode}" if exitcode >= 0 else f"by signal {-exitcode}, {signal.strsignal(-exitcode)}"


def start_worker(start):
    """Prepare a worker: put it into its own process group, which ends with the parent, and call `start`.

    Ctrl-C then reaches the parent only, so that clips in flight can be finished.
    """
    os.setpgrp()
    signal.signal(signal.SIGTERM, end_group)  # the pool sends it after the time limit
    threading.Thread(target=end_with_parent, daemon=True).start()
    if start:
        start()


def end_group(*_):
    """End this process and its child processes; otherwise a decoder that hangs would continue."""
    os.killpg(0, signal.SIGKILL)


def end_with_parent():
    multiprocessing.parent_process().join()
    end_group()
