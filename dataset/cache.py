"""Decode every clip once up front: drop the ones that fail, cache the others as memory-mapped arrays.

The cache is a folder with a file `<hash>.npy` for each clip and decoder, or `<hash>.txt` with the reason why the clip
cannot be decoded. The hash depends on the decoder and on paths, sizes and modification times of the clip's files. The
cache has no index and no lock: a file is written under a temporary name and renamed. You can delete it at any time.
"""

import hashlib
import importlib
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from utils.errors import InputError, warn_once
from utils.pool import ClipError, each_clip
from utils.processes import first_on_machine, gather, is_first_on_machine

FORMAT = 4  # increase it whenever a Decoder makes other arrays of the same clips
GB, FULL_DISK = 10**9, 0.95  # bytes; share of a disk above which nothing is written

written = 0  # bytes that this process has written


def prepare(dataset, args, workers):
    """Decode the clips of a ClipDataset that are not in the cache, in `workers` processes, with a progress bar.

    Clips that cannot be decoded move from `dataset.clips` to `dataset.damaged`, {id: reason}. `dataset.cached` gets
    the file of each clip that is in the cache. The first process of each machine does this for all others.

    Raises:
        InputError: no clip is left.
    """
    files = {clip.id: os.path.join(args.cache_path, hash_of(dataset.decoder, clip)) for clip in dataset.clips}
    with first_on_machine():
        failed = decode_missing(dataset, files, args, workers) if is_first_on_machine() else {}
    for each in gather(failed):  # a clip that one machine cannot read is left out on all
        dataset.damaged |= each
    dataset.clips = [clip for clip in dataset.clips if clip.id not in dataset.damaged]
    dataset.cached = {name: f"{path}.npy" for name, path in files.items() if os.path.exists(f"{path}.npy")}
    if not dataset.clips:
        reason = next(iter(dataset.damaged.values()))
        raise InputError(f"{args.dataset}: no clip can be decoded; restore the files; the first error is: {reason}")


def decode_missing(dataset, files, args, workers):
    """Decode the clips that are not in the cache; store them while there is room; return {id: reason} of failures."""
    failed, jobs, problem, room = {}, {}, None, args.cache_gb * GB
    with suppress(OSError), os.scandir(args.cache_path) as entries:
        room -= sum(entry.stat().st_size for entry in entries)
    for clip in dataset.clips:
        path = files[clip.id]
        with suppress(OSError), open(f"{path}.txt", encoding="utf-8", errors="surrogateescape") as file:
            failed[clip.id] = file.read()
        if clip.id not in failed and not os.path.exists(f"{path}.npy"):
            jobs[clip.id] = (dataset.decoder, clip, path)
    if jobs:
        with suppress(OSError):  # where the folder cannot be created, writing into it reports why
            os.makedirs(args.cache_path, exist_ok=True)
        importlib.import_module("librosa.core.audio")  # seconds, once here and not in each worker
    share = room / min(workers, len(jobs) or 1)
    for name, result in each_clip(partial(decode, room=share), jobs, workers, "decoding clips"):
        if isinstance(result, ClipError):
            failed[name] = str(result)
        else:
            problem = problem or result
    if problem and args.cache_gb:
        warn_once(f"--cache_path {args.cache_path}: {problem}; some clips are decoded each time")
    return failed


def hash_of(decoder, clip):
    """Return the name of a clip's file in the cache, without its suffix."""
    if decoder.training:
        decoder = replace(decoder, num_frame=0, size=0)  # each epoch draws and crops frames itself
    parts = [FORMAT, asdict(decoder)]
    for path in clip.files():
        with suppress(OSError):  # decoding reports a missing file
            stat = os.stat(path)
            parts += [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
    return hashlib.blake2b(repr(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def decode(decoder, clip, path, room):
    """Decode a clip, and write its arrays to `path`.npy if this process has then not written more than `room` bytes.

    Returns:
        None, or why the arrays were not written.

    Raises:
        ClipError: one of the clip's files cannot be decoded. The reason is written to `path`.txt.
    """
    torch.set_num_threads(1)
    try:
        arrays = decoder.arrays(clip)
    except ClipError as error:
        with suppress(OSError):
            for file in clip.files():
                open(file, "rb").close()  # an error of reading is not remembered: it may be temporary
            write(f"{path}.txt", str(error).encode(errors="surrogateescape"))
        raise
    except MemoryError:
        return "memory ran out while a clip was decoded"
    try:
        if arrays is None:
            return "clips of more than 2 GiB are not kept in it"
        disk = shutil.disk_usage(os.path.dirname(path))
        if written + arrays.nbytes > room:
            return "the limit of --cache_gb is reached; delete the folder, or raise the limit"
        if disk.used + arrays.nbytes > FULL_DISK * disk.total:
            return "its disk is nearly full; free space"
        write(f"{path}.npy", arrays)
    except OSError as error:
        return error.strerror or str(error)


def write(path, content):
    """Write bytes, or an array as .npy, completely or not at all."""
    global written
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            np.save(file, content) if isinstance(content, np.ndarray) else file.write(content)
            written += file.tell()
            file.flush()
            os.fsync(file.fileno())  # after a power failure a renamed file could otherwise hold zeros
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)
