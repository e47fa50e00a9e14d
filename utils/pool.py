"""Work on many clips at once: in parallel, and whatever becomes of one of them."""

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

IN_FLIGHT = 2  # jobs handed to the pool per worker: enough to keep it busy, few to wait for when it is interrupted
TIME_LIMIT = 300  # seconds for one clip, where a decoder needs a few: beyond that it will not end by itself


class ClipError(Exception):
    """A clip that cannot be processed: "<reason>" or "<reason>: <details>". The other clips go on."""


def cores():
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def process_clips(function, jobs, workers=None, start=None, limit=TIME_LIMIT):
    """`each_clip` for a function that returns "done" or "already there".

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

    Any exception concerns its clip alone, and so does a crash of the process that works on it, or one that does not
    come to an end; another process takes its place.

    Args:
        function: a top-level function.
        jobs: {clip name: arguments}.
        workers: processes; None for one per core that is allowed.
        description: what the progress bar says.
        start: a top-level function that every process calls first.
        limit: seconds for one clip, after which its process is ended; None for any time that it takes.

    Yields:
        (clip name, what the function returned, or the ClipError), in the order in which they end.
    """
    waiting, once_more = list(reversed(jobs)), set()
    with progress_bar(total=len(jobs), desc=description, unit="clip") as progress:
        if waiting and (reason := why_no_processes()):
            warn_once(f"{reason}; clips are processed one after the other, without worker processes")
            for name in jobs:
                yield name, attempt(function, jobs[name])
                progress.update()
            return
        while waiting:
            for name, future in run_pool(function, jobs, waiting, workers or cores(), start, limit):
                try:
                    result = future.result()
                except BrokenProcessPool:  # a process died on its way from one clip to the next: whose, nobody can tell
                    if name not in once_more:
                        once_more.add(name)
                        waiting.append(name)
                        continue
                    result = ClipError("crashed: its process died twice; download it again")
                except ProcessExpired as error:
                    result = ClipError(f"crashed: its decoder ended {manner_of(error.exitcode)}; download it again")
                except concurrent.futures.TimeoutError:
                    result = ClipError(f"hung: its decoder did not end within {limit:g} s; download it again")
                progress.update()
                yield name, result


def why_no_processes():
    """Return why no worker process can be started here, "" if nothing speaks against it."""
    try:
        multiprocessing.Lock()  # Linux keeps it in /dev/shm
    except OSError as error:
        return f"/dev/shm: {error.strerror}"
    return ""


def run_pool(function, jobs, waiting, workers, start, limit):
    """Run the jobs that `waiting` names, taking them off its end, until it is empty or the pool breaks.

    Yields:
        (name, its finished future); of a broken pool that of each job in flight raises BrokenProcessPool.
    """
    in_flight = {}
    with ProcessPool(workers, initializer=start_worker, initargs=(start,)) as pool:
        while pool.active and (waiting or in_flight):
            with suppress(RuntimeError):  # it broke just now
                while waiting and len(in_flight) < IN_FLIGHT * workers:
                    future = pool.schedule(attempt, (function, jobs[waiting[-1]]), timeout=limit)
                    in_flight[future] = waiting.pop()
            done = concurrent.futures.wait(in_flight, 1, concurrent.futures.FIRST_COMPLETED).done
            yield from ((in_flight.pop(future), future) for future in done)
    for future, name in in_flight.items():
        if not future.done():
            future.set_exception(BrokenProcessPool())
        yield name, future


def attempt(function, arguments):
    """Return what the function returns; any exception concerns this clip alone, and is returned as a ClipError."""
    try:
        return function(*arguments)
    except ClipError as error:
        return error
    except OSError as error:
        return ClipError(error.strerror or str(error))
    except Exception as error:  # decoders raise nearly anything on a damaged file
        return ClipError(f"not processed: {type(error).__name__}: {error}; look at this file, or leave it out")


def manner_of(exitcode):
    """How a process ended, in words."""
    return f"with status {exitcode}" if exitcode >= 0 else f"by signal {-exitcode}, {signal.strsignal(-exitcode)}"


def start_worker(start):
    """Lead a process group of its own, which ends with the parent: Ctrl-C is the parent's, clips in flight may end."""
    os.setpgrp()
    signal.signal(signal.SIGTERM, end_group)  # from the pool, when the clip's time is over
    threading.Thread(target=end_with_parent, daemon=True).start()
    if start:
        start()


def end_group(*_):
    """End this process and what it has started; a decoder of its own that hangs would go on."""
    os.killpg(0, signal.SIGKILL)


def end_with_parent():
    multiprocessing.parent_process().join()
    end_group()
