"""Write files completely or not at all, and lock folders."""

import csv
import errno
import io
import json
import os
import shutil
import sys
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError

LOCK, LOCK_SECONDS = ".lock", 10  # data-loading workers of a killed run keep its lock for some seconds
LFS_HEADER = b"version https://git-lfs.github.com/spec"


def folder_hint(path):
    """Return the end of a message about a missing path: " in <folder>" for a relative path, else ""."""
    return "" if os.path.isabs(path) else f" in {os.getcwd()}"


@contextmanager
def replace_file(path):
    """Yield a binary file that replaces `path` once the block has succeeded and the data are on the disk.

    A device or a pipe, such as /dev/stdout, is written to directly.

    Raises:
        InputError: the file cannot be written. An older file at `path` stays unchanged.
    """
    partial = f"{path}.partial"
    try:
        if str(path).startswith(("/dev/std", "/dev/fd/")) or os.path.exists(path) and not os.path.isfile(path):
            sys.stdout.flush()
            is_output = str(path) == "/dev/stdout"  # after what was printed, also if it is a file
            with open(1 if is_output else path, "wb", closefd=not is_output) as file:
                yield file
            return
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
    """Write `text` to `path`, completely or not at all, as `replace_file` does."""
    with replace_file(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_files(files, overwrite):
    """Write {path: bytes}, each completely or not at all. Files that have this content already are left alone.

    If `overwrite` replaces a file, all lists (*.csv) are removed first, so that no list names files of two versions.

    Raises:
        InputError: a file has other content and `overwrite` is False, or it cannot be written.
    """
    try:
        others = [path for path, content in files.items() if path.exists() and path.read_bytes() != content]
        if others and not overwrite:
            raise InputError(f"{others[0]}: has other content; replace it with --overwrite, or change --split_path")
        for path in files if others else ():
            if path.suffix == ".csv":
                path.unlink(missing_ok=True)
        for path, content in files.items():
            if not path.exists() or path in others:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replace_file(path) as file:
                    file.write(content)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; change --root or --split_path") from None


def read_json(path):
    """Return the content of a JSON file, in which names of files may have other encodings than UTF-8.

    Raises:
        OSError, ValueError: the file cannot be read, or is not JSON.
    """
    return json.loads(read_text(path))


def read_text(path):
    """Return the text of a file that `write_text` has written."""
    return Path(path).read_text(encoding="utf-8", errors="surrogateescape")


def write_json(path, values):
    """Write dicts and lists of plain values to `path` as JSON, as `replace_file` does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_csv(path, rows):
    """Write rows of cells, the header first, to `path` as CSV, as `replace_file` does."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def is_pointer(path):
    """Return True if a file is a Git LFS pointer, in place of a file that was not fetched."""
    with open(path, "rb") as file:
        return file.read(len(LFS_HEADER)) == LFS_HEADER


@contextmanager
def lock_folder(folder, flag):
    """Create a folder and lock it while the block lasts. Afterwards remove the folders created here that are empty.

    Args:
        folder: path of the folder.
        flag: the flag that sets the folder, for error messages.

    Raises:
        InputError: another run holds the lock, or the folder cannot be created.
    """
    try:
        created = [each for each in (Path(folder), *Path(folder).parents) if not each.exists()]
        os.makedirs(folder, exist_ok=True)
        lock = FileLock(os.path.join(folder, LOCK))
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise InputError(f"{folder}: another run is writing into it; wait, or choose another {flag}") from None
    except NotImplementedError:  # the file system has no locks
        lock = None
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another {flag}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            if set(os.listdir(folder)) <= {LOCK}:
                os.remove(os.path.join(folder, LOCK))
                for each in created:
                    each.rmdir()
        if lock:
            lock.release()


@contextmanager
def move_when_complete(target, unfinished):
    """Yield a path for a new file or folder; it replaces `target` only if the block succeeds.

    Args:
        target: the final Path.
        unfinished: the folder that holds the path until then.
    """
    path = Path(unfinished) / uuid.uuid4().hex
    try:
        yield path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(target)
        except OSError as error:
            if error.errno == errno.EXDEV:  # the two are on different disks
                partial = target.with_name(f".{target.name}.partial")
                remove(partial)
                path = shutil.move(path, partial)
            elif not os.path.lexists(target):
                raise
            remove(target)  # a folder, which a rename does not replace
            path.rename(target)
    finally:
        with suppress(OSError):
            remove(path)


def remove(path):
    """Remove a file, or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
