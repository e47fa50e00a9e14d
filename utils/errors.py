"""Errors of the input, and signals: one line on stderr and an exit status, no traceback."""

import argparse
import difflib
import os
import re
import select
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from functools import cache

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # with which terminals and clusters end a job

WORKER_KILLED = r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"  # what PyTorch says
SHARED_MEMORY_FULL = r"(?s).*unable to (allocate|open|resize|write|mmap).*(shared memory|/torch_)"
PROCESS_LOST = r"(?i)gloo|nccl|process group|connection (closed|reset|refused)|broken pipe"


class InputError(Exception):
    """A bad flag, file or folder. The message is one line that names it and the remedy."""


class Interrupted(BaseException):
    """A signal that ends the process. `number` is the signal's."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


@contextmanager
def signals_raise():
    """A block in which SIGNALS raise Interrupted; those that are ignored, as SIGHUP under nohup, stay ignored."""

    def receive(number, _):
        raise Interrupted(number)

    def send_again(ignored):  # Python ignores what is raised in a destructor or while a worker is forked
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
    """Print a warning the first time, in the first process of each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line (argparse prints its whole usage first); flags are typed in full."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Parse as argparse does, with `~` of a path expanded also in --flag=~/path, where shells leave it."""
        words = []
        for word in sys.argv[1:] if args is None else args:
            flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            words.append(flag + equals + (os.path.expanduser(value) if value.startswith("~/") else value))
        return super().parse_known_args(words, namespace)

    def error(self, message):
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        meant = [flag for flag in self._option_string_actions if is_meant(unknown, flag)]
        if meant and unknown not in meant:
            message += f"; did you mean {' or '.join(meant)}?"
        raise InputError(f"{message}; {self.prog} --help lists every flag")


def is_meant(typed, flag):
    """Return True if an unknown word may stand for a flag: its beginning, its initials, or a typing error."""
    initials = "--" + "".join(word[0] for word in flag.strip("-").split("_"))
    begins = flag.startswith(typed) and typed.strip("-")
    return typed[:2] == "--" and bool(begins or typed == initials or difflib.get_close_matches(typed, [flag], 1, 0.8))


def nobody_reads():
    """Return True if the reader of our output has closed it, as `| head` does; the rest of the output is dropped."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    gone = outputs.poll(0)
    for descriptor, _ in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def known_reason(fault):
    """Return the reason and the remedy for an error of PyTorch that is no defect of ours, or None."""
    if not isinstance(fault, RuntimeError):
        return None
    if re.match(WORKER_KILLED, str(fault)):
        return (
            "a data-loading worker was killed, probably because memory ran out; run the same command to resume, with "
            "fewer --num_workers or a smaller --batch_size"
        )
    if re.match(SHARED_MEMORY_FULL, str(fault)):
        return "/dev/shm: no room for a batch; make it larger (docker run --shm-size=2g), or use fewer --num_workers"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and re.search(PROCESS_LOST, str(fault)):
        return "another process of this run, or its machine, has ended; run the same command everywhere to resume"
    return None


def run(main):
    """Return main(); turn errors of the input and signals into one line and an exit status.

    InputError, also one raised in a data-loading worker, is status 2; a signal is 128 + its number.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have another encoding
    try:
        with signals_raise():
            result = main()
            print(end="", flush=True)
            return result
    except InputError as error:
        sys.unraisablehook = lambda _: (
            None
        )  # a DataLoader whose workers could not be started fails once more at its end
        # a worker's error arrives as the text of its traceback, whose last line is the message
        message = str(error).strip().splitlines()[-1].removeprefix("utils.errors.InputError: ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as interruption:
        number = getattr(interruption, "number", signal.SIGINT)
        sys.unraisablehook = lambda _: None  # the destructors of objects that the signal left unfinished fail
        if os.environ.get("RANK", "0") == "0":
            print(f"interrupted by {signal.Signals(number).name}; run the same command to resume", file=sys.stderr)
        sys.exit(128 + number)
    except Exception as fault:
        if isinstance(fault, BrokenPipeError) and nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        if reason := known_reason(fault):
            print(f"error: {reason}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)  # a defect of ours: without sys.exit, workers would be waited for in vain
