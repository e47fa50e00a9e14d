"""Turn bad input and signals into one line on stderr and an exit status, without a traceback."""

import argparse
import difflib
import errno
import os
import re
import select
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from functools import cache

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # terminals and clusters end a job with these

WORKER_KILLED = (
    "a data-loading worker was killed, probably because memory ran out; run the same command to resume, with fewer "
    "--num_workers or a smaller --batch_size"
)
# PyTorch's messages
KILLED = r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"
SHARED_MEMORY_FULL = r"(?s).*unable to (allocate|open|resize|write|mmap).*(shared memory|/torch_)"
OUT_OF_MEMORY = r"CUDA (error: )?out of memory|DefaultCPUAllocator: (can't allocate|not enough) memory"
PROCESS_LOST = r"(?i)gloo|nccl|process group|connection (closed|reset|refused)|broken pipe"


class InputError(Exception):
    """A bad flag, file or folder. The message is one line: what is wrong, where, and what to do."""


class Interrupted(BaseException):
    """A signal that ends the process.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number):
        super().__init__(number)
        self.number = number


overwritten = False  # see `set_overwritten`
delayed = None  # numbers of the signals that arrived while `delay_signals` lasts


@contextmanager
def delay_signals():
    """Delay Interrupted until the block ends, and start processes in which SIGNALS are blocked.

    Blocking them is not enough: another thread receives them, and Python calls the handler in this one.
    """
    global delayed
    delayed, mask = [], signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        arrived, delayed = delayed, None
        if arrived:
            raise Interrupted(arrived[0])


@contextmanager
def raise_on_signals():
    """Raise Interrupted on SIGNALS while the block lasts; ignored signals, such as SIGHUP under nohup, stay ignored."""

    def receive(number, _):
        if delayed is None:
            raise Interrupted(number)
        delayed.append(number)

    def send_again(ignored):  # Python ignores an exception raised in a destructor or while a worker is forked
        if isinstance(ignored.exc_value, Interrupted):
            timer = threading.Timer(0.1, os.kill, (os.getpid(), ignored.exc_value.number))
            timer.daemon = True
            timer.start()
        else:
            sys.__unraisablehook__(ignored)

    handlers = {
        number: signal.signal(number, receive) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    }
    hook, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


@cache
def warn_once(text):
    """Print a warning, but only once per process, and only in the first process of each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError instead of printing its usage, and takes no abbreviated flags."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Parse as argparse does, and expand `~` also in --flag=~/path, which shells do not expand."""
        words = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            words.append(flag + equals + (os.path.expanduser(value) if value.startswith("~/") else value))
        return super().parse_known_args(words, namespace)

    def error(self, message):
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        candidates = [flag for flag in self._option_string_actions if resembles(unknown, flag)]
        if candidates and unknown not in candidates:
            message += f"; did you mean {' or '.join(candidates)}?"
        raise InputError(f"{message}; {self.prog} --help lists every flag")


def resembles(typed, flag):
    """Return True if an unknown word may stand for a flag: as its start, its initials, or a misspelling."""
    initials = "--" + "".join(word[0] for word in flag.strip("-").split("_"))
    is_prefix = flag.startswith(typed) and typed.strip("-")
    return typed[:2] == "--" and bool(
        is_prefix or typed == initials or difflib.get_close_matches(typed, [flag], 1, 0.8)
    )


def output_is_closed():
    """Return True if the program that reads our output has closed the pipe, as `head` does; drop further output."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    closed = outputs.poll(0)
    for descriptor, _ in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(closed)


def known_reason(fault):
    """Return the reason and the remedy for an error with a known external cause, or None."""
    if isinstance(fault, OSError) and fault.errno == errno.ENOSPC and fault.filename:
        return f"{fault.filename}: no space left on the device; free space and run the same command again"
    if isinstance(fault, MemoryError) or isinstance(fault, RuntimeError) and re.search(OUT_OF_MEMORY, str(fault)):
        return "memory ran out; use a smaller --batch_size or fewer --num_workers"
    if not isinstance(fault, RuntimeError):
        return None
    if re.match(KILLED, str(fault)):
        return WORKER_KILLED
    if re.match(SHARED_MEMORY_FULL, str(fault)):
        return "/dev/shm: no room for a batch; make it larger (docker run --shm-size=2g), or use fewer --num_workers"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and re.search(PROCESS_LOST, str(fault)):
        return "another process of this run, or its machine, has ended; run the same command everywhere to resume"
    return None


def with_command(message):
    """Return a message with the command that resumes the run: after --overwrite has removed a run, one without it."""
    return message.replace("run the same command", f"run the same command{' without --overwrite' * overwritten}")


def set_overwritten(value):
    """Set whether --overwrite has removed the files of an older run, so that the same command would remove this one."""
    global overwritten
    overwritten = value


def run_script(main):
    """Return main(); turn an InputError or a signal into one line on stderr and an exit status.

    The status is 2 for an InputError, also for one raised in a data-loading worker, and for errors with a
    `known_reason`. It is 128 + the signal's number for a signal. Any other exception prints its traceback, status 1.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may have another encoding
    set_overwritten(False)
    try:
        with raise_on_signals():
            result = main()
            print(end="", flush=True)
            return result
    except InputError as error:
        # a DataLoader whose workers could not be started fails again in its destructor
        sys.unraisablehook = lambda _: None
        # a worker's error arrives as the text of a traceback, whose last line is the message
        message = str(error).strip().splitlines()[-1].removeprefix("utils.errors.InputError: ")
        print(f"error: {with_command(message)}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as interruption:
        number = getattr(interruption, "number", signal.SIGINT)
        sys.unraisablehook = lambda _: None  # the destructors of objects that the signal left unfinished fail
        if os.environ.get("RANK", "0") == "0":
            name = signal.Signals(number).name
            print(with_command(f"interrupted by {name}; run the same command to resume"), file=sys.stderr)
        sys.exit(128 + number)
    except Exception as fault:
        if isinstance(fault, BrokenPipeError) and output_is_closed():
            sys.exit(128 + signal.SIGPIPE)
        if reason := known_reason(fault):
            print(f"error: {with_command(reason)}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)  # a defect of this project; without sys.exit, Python would wait for workers forever
