"""Errors that are the input's: one line on stderr, exit status 2, no traceback."""

import argparse
import difflib
import os
import re
import select
import signal
import sys
import traceback

KILLED = r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)"  # what PyTorch says


class InputError(Exception):
    """A bad flag, file or folder. The message is one line that names it and the remedy."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # with which terminals and clusters end a job


class Interrupted(Exception):
    """A run that a signal ended between two steps. `number` is the signal's, the message says how to go on."""

    def __init__(self, number, message=""):
        super().__init__(message)
        self.number = number


def heed(receive):
    """Have `receive` called at SIGNALS, less those that are ignored, SIGHUP under nohup -> {number: handler before}."""
    return {number: signal.signal(number, receive) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line (argparse prints its whole usage first); flags are typed in full."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        unknown = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        meant = [flag for flag in self._option_string_actions if is_meant(unknown, flag)]
        if meant and unknown not in meant:
            message += f"; did you mean {' or '.join(meant)}?"
        raise InputError(f"{message}; {self.prog} --help lists every flag")


def is_meant(typed, flag):
    """Whether a word that is no flag may stand for one: its beginning, its initials, or a slip of the hand."""
    initials = "--" + "".join(word[0] for word in flag.strip("-").split("_"))
    begins = flag.startswith(typed) and typed.strip("-")
    return typed[:2] == "--" and bool(begins or typed == initials or difflib.get_close_matches(typed, [flag], 1, 0.8))


def nobody_reads():
    """Whether what reads our output has gone, as `| head` does; the rest of it goes nowhere then."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    gone = outputs.poll(0)
    for descriptor, _ in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)


def run(main):
    """Return main(); turn an InputError, also one raised in a data loader's worker, into one line and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be of another encoding
    try:
        result = main()
        print(end="", flush=True)
        return result
    except InputError as error:
        # a worker's error arrives as the text of its traceback, whose last line is the message
        message = str(error).strip().splitlines()[-1].removeprefix("utils.errors.InputError: ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        if os.environ.get("RANK", "0") == "0":
            print(interruption, file=sys.stderr)
        sys.exit(128 + interruption.number)
    except Exception as fault:
        if isinstance(fault, BrokenPipeError) and nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(fault, RuntimeError) and re.match(KILLED, str(fault)):
            print(
                "error: a reader process was killed from outside, for want of memory it may be; the same command goes "
                "on: give it fewer --num_workers, or a smaller --batch_size",
                file=sys.stderr,
            )
            sys.exit(2)
        traceback.print_exc()
        sys.exit(1)  # a fault of ours: by hand, since reader processes would be waited for in vain otherwise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
