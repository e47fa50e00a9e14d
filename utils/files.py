"""Files that are written whole or not at all, and folders that one run has for itself."""

import fcntl
import json
import os
from contextlib import contextmanager

from utils.errors import InputError


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
        file.write(text.encode())


def write_json(path, values):
    """Write `values`, a dict of plain values, to `path` as JSON, as `replacing` does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


locked = set()  # descriptors of folders; a forked reader process gives its copies up, lest it outlive the run with them
os.register_at_fork(after_in_child=lambda: [os.close(descriptor) for descriptor in locked])


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
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.add(descriptor)
        yield
    except BlockingIOError:
        raise InputError(
            f"{folder}: another run is writing into it; wait for its end, or choose another {flag}"
        ) from None
    finally:
        locked.discard(descriptor)
        os.close(descriptor)
