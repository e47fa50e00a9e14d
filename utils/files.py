"""Files that are written whole or not at all, and folders that one run has for itself."""

import csv
import fcntl
import io
import json
import os
from contextlib import contextmanager

from utils.errors import InputError

LFS_HEADER = b"version https://git-lfs.github.com/spec"


@contextmanager
def replacing(path):
    """A binary file to write; it takes the place of `path` when the block ends well and its bytes are on the disk.

    Raises:
        InputError: it cannot be written; what was there is left as it was.
    """
    partial = f"{path}.partial"
    try:
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def write_text(path, text):
    """Replace the file at `path` by `text`, as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_json(path, values):
    """Write `values`, dicts and lists of plain values, to `path` as JSON, as `replacing` does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_csv(path, rows):
    """Write rows of cells, the header first, to `path` as CSV, as `replacing` does."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def is_pointer(path):
    """Whether a file is what Git LFS leaves in place of one that it has not fetched."""
    with open(path, "rb") as file:
        return file.read(len(LFS_HEADER)) == LFS_HEADER


locked = set()  # descriptors of folders


def give_up_locks():
    """In a forked reader process: close its copies, lest it outlive the run and keep the folder."""
    while locked:
        os.close(locked.pop())


os.register_at_fork(after_in_child=give_up_locks)


@contextmanager
def exclusive(folder, flag):
    """Make `folder` if need be, and keep other runs out of it until the block or the process ends.

    Raises:
        InputError: another run is in it, or it cannot be made; the message names `flag` as the one to change.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another {flag}") from None
    locked.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another run is writing into it; wait, or choose another {flag}") from None
        yield
    finally:
        locked.discard(descriptor)
        os.close(descriptor)
