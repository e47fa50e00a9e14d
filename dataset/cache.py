"""Every clip is decoded once before it is used: what cannot be is left out, the rest is kept to be mapped into memory.

A folder in --cache_path holds what one Decoder makes of a dataset's clips: per clip `<digest>.f32` (sound) and
`<digest>.u8` (pictures), bare arrays, and index.json, which says what files they were made of and is written last.
"""

import hashlib
import importlib
import json
import math
import os
import re
import shutil
import sys
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from utils.errors import InputError
from utils.files import release, take_lock, write_text
from utils.pool import ClipError, each_clip
from utils.processes import rank

FORMAT = 3  # raised whenever a Decoder makes other arrays of the same clips
GB = 10**9
NAME = re.compile(r"\w+-[0-9a-f]{16}")  # of a folder; others are not the cache's
INDEX_EVERY = 60  # seconds after which an index of what has been decoded so far is written

folders = weakref.WeakKeyDictionary()  # of the datasets that this process reads, its own


@lru_cache(maxsize=2**14)  # a mapping costs more than what is read through it; Linux allows a process 65,530
def mapped(path, size, dtype):
    return torch.from_file(path, size=size, dtype=dtype)


class Stored(NamedTuple):
    """A clip's arrays in the cache."""

    path: str  # without suffix
    sound_shape: list[int]
    picture_shapes: list[list[int]]

    def sound(self):
        """As Decoder.sound; RuntimeError if the file is gone."""
        return mapped(f"{self.path}.f32", math.prod(self.sound_shape), torch.float32).view(self.sound_shape)

    def picture(self, k):
        """As Decoder.picture; RuntimeError if the file is gone."""
        sizes = [math.prod(shape) for shape in self.picture_shapes]
        pictures, start = mapped(f"{self.path}.u8", sum(sizes), torch.uint8), sum(sizes[:k])
        return pictures[start : start + sizes[k]].view(self.picture_shapes[k])

    def sizes(self):
        """Bytes of both files."""
        return 4 * math.prod(self.sound_shape), sum(map(math.prod, self.picture_shapes))

    def is_there(self):
        try:
            return (os.path.getsize(f"{self.path}.f32"), os.path.getsize(f"{self.path}.u8")) == self.sizes()
        except OSError:
            return False


class Entry(NamedTuple):
    """What the index says of a clip: digest of its files, why it cannot be decoded or "", shapes of its arrays."""

    fingerprint: str
    reason: str = ""
    sound_shape: list[int] = ()
    picture_shapes: list[list[int]] = ()

    def stored(self, folder, name):
        return Stored(os.path.join(folder, digest(name)), self.sound_shape, self.picture_shapes)


def prepare(dataset, args, workers):
    """Decode every clip of a ClipDataset that is new or has changed, and keep what of it is the same in all epochs.

    Clips that cannot be decoded go from its `clips` to its `damaged`, with the reason. The others' arrays are kept in
    args.cache_path, in the order of the clips, up to args.cache_gb for the folder; what does not fit is decoded each
    time. What other settings left there makes room, the longest unused first, but not what a running process reads.
    `workers` processes share the work, with a progress bar; another run that needs the same clips waits for it. A
    clip's files are known by name, size and time of change; what could not be decoded is tried again.

    Raises:
        InputError: no clip is left.
    """
    folder = os.path.join(args.cache_path, f"{args.dataset}-{digest(FORMAT, *settings_of(dataset.decoder, args))}")
    names = {clip.wav: os.path.relpath(clip.wav, args.audio_path) for clip in dataset.clips}
    limit = args.cache_gb * GB - sum(size_of(path) for path in folders_of(args.cache_path) - {folder} if in_use(path))
    if size_of(folder) > limit:
        evict(folder)
    with suppress(OSError):  # of a cache that may be read alone
        os.makedirs(args.cache_path, exist_ok=True)
        weakref.finalize(dataset, release, take_lock(f"{folder}.lock", shared=True, wait=True))
    index, jobs, _ = to_decode(dataset, folder, names, limit)
    if jobs:
        with decoding(folder):
            index, jobs, needed = to_decode(dataset, folder, names, limit)  # another run may have decoded them
            make_room(args.cache_path, folder, args.cache_gb * GB - needed)
            index = decode_all(jobs, index, folder, workers)
            mapped.cache_clear()  # a clip's arrays may have been replaced
    for clip in dataset.clips:
        name, entry = names[clip.wav], index[names[clip.wav]]
        if entry.reason:
            dataset.damaged[clip.id] = entry.reason
        elif (stored := entry.stored(folder, name)).is_there():
            dataset.stored[clip.wav] = stored
    dataset.clips = [clip for clip in dataset.clips if not index[names[clip.wav]].reason]
    folders[dataset] = folder
    if not dataset.clips:
        reason = next(iter(dataset.damaged.values()))
        raise InputError(f"{args.dataset}: no clip is left that can be decoded; restore them; the first: {reason}")


def to_decode(dataset, folder, names, limit):
    """Which clips are to be decoded, and how much room they may take.

    Args:
        dataset, folder: as in `prepare`.
        names: {path of the sound: its name in the index}.
        limit: bytes that the folder may have.

    Returns:
        (index, {name: arguments of `decode`}, bytes of arrays that are to be written or are not to be lost).
    """
    index, jobs, needed, room = read_index(folder), {}, 0, limit - size_of(folder)
    for clip in dataset.clips:
        name, found = names[clip.wav], fingerprint(clip)
        entry = index.get(name)
        known = entry is not None and entry.fingerprint == found
        if known and (rank() > 0 if entry.reason else entry.stored(folder, name).is_there()):
            continue
        size = 0
        if needed < room:
            size = sum(entry.stored(folder, name).sizes()) if known else dataset.decoder.expected_bytes(clip)
            if needed + size > room:
                size, room = 0, needed  # full
            needed += size
        if size or not known:
            jobs[name] = (dataset.decoder, clip, found, os.path.join(folder, digest(name)), size)
    return index, jobs, needed


@contextmanager
def decoding(folder):
    """A block in which no other process decodes clips into a folder of the cache; one that does is waited for."""
    lock = None
    with suppress(OSError):  # a cache that may be read alone
        try:
            lock = take_lock(f"{folder}.decoding.lock")
        except BlockingIOError:
            print("another run decodes the same clips, waiting for it", flush=True)
            lock = take_lock(f"{folder}.decoding.lock", wait=True)
    try:
        yield
    finally:
        release(lock)


def check_damage(datasets, max_skipped):
    """Raise InputError if more than the share `max_skipped` of the datasets' clips was damaged."""
    damaged = {clip_id: reason for dataset in datasets for clip_id, reason in dataset.damaged.items()}
    clips = len(damaged) + sum(map(len, datasets))
    if len(damaged) > max_skipped * clips:
        clip_id, reason = next(iter(damaged.items()))
        raise InputError(
            f"{len(damaged)} of {clips} clips cannot be decoded, more than --max_skipped {max_skipped:g} allows; "
            f"restore them or raise it; the first is {clip_id}: {reason}"
        )


def settings_of(decoder, args):
    """All that decides what a Decoder makes of a dataset's clips."""
    if decoder.training:
        decoder = replace(decoder, num_frame=0, size=0)  # each epoch's business
    return asdict(decoder), os.path.realpath(args.audio_path), os.path.realpath(args.visual_path)


def digest(*parts):
    """A short name for what `parts` say."""
    return hashlib.blake2b("\n".join(map(str, parts)).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def fingerprint(clip):
    """A digest of the names, sizes and times of change of a clip's files."""
    states = []
    for path in clip.files():
        try:
            stat = os.stat(path)
            states += [os.path.basename(path), stat.st_size, stat.st_mtime_ns]
        except OSError:
            states += [os.path.basename(path), "missing"]
    return digest(*states)


def size_of(folder):
    """Bytes of the files in a folder of the cache, the index aside; 0 if it is not there."""
    try:
        with os.scandir(folder) as files:
            return sum(file.stat().st_size for file in files if file.name != "index.json")
    except OSError:
        return 0


def folders_of(cache):
    """The folders in a cache, a set of paths; of other things in it nothing is touched."""
    return {str(path) for path in Path(cache).glob("*-*") if NAME.fullmatch(path.name) and path.is_dir()}


def in_use(folder):
    """Whether this process or another that runs reads a folder of the cache."""
    if folder in folders.values():
        return True
    try:
        release(take_lock(f"{folder}.lock"))
    except BlockingIOError:
        return True
    except OSError:  # of a cache that may be read alone
        pass
    return False


def evict(folder):
    """Remove a folder of the cache, unless a process that runs has begun to read it. Returns whether it is gone."""
    if folder in folders.values():
        return False
    try:
        lock = take_lock(f"{folder}.lock")
    except OSError:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    release(lock)
    return True


def make_room(cache, folder, limit):
    """Remove other folders of the cache, the longest unused first, until it holds at most `limit` bytes."""
    others = sorted(folders_of(cache) - {folder}, key=last_use)
    total = size_of(folder) + sum(map(size_of, others))
    for other in others:
        if total > limit:
            size = size_of(other)
            total -= size if evict(other) else 0


def last_use(folder):
    """When `read_index` last read a folder's index; 0 if there is none, and then nothing can read the folder."""
    try:
        return os.path.getmtime(os.path.join(folder, "index.json"))
    except OSError:
        return 0


def read_index(folder):
    """The index, {name of the sound: Entry}; empty where it is missing or damaged. Marks the folder as used now."""
    path = os.path.join(folder, "index.json")
    with suppress(OSError):  # of a cache that may be read alone
        os.utime(path)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            index = {name: Entry(*entry) for name, entry in json.load(file).items()}
        for entry in index.values():
            Stored("", *entry[2:]).sizes()
        return index
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def decode_all(jobs, index, folder, workers):
    """`decode` every job -> the index with what became of them, written every minute and when it is interrupted."""
    unwritable, written = None, time.monotonic()
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        unwritable = error
    importlib.import_module("librosa.core.audio")  # seconds, which the pool's processes are spared as forks of this one
    try:
        for name, result in each_clip(decode, jobs, workers, "decoding clips"):
            if isinstance(result, ClipError):
                index[name] = Entry(jobs[name][2], str(result))
            else:
                index[name], unwritable = result[0], unwritable or result[1]
            if time.monotonic() > written + INDEX_EVERY and not unwritable:
                unwritable, written = write_index(folder, index), time.monotonic()
    finally:
        unwritable = unwritable or write_index(folder, index)
        if unwritable:
            print(f"warning: --cache_path: {unwritable}; clips are decoded each time", file=sys.stderr)
    return index


def write_index(folder, index):
    """Write the index, whose arrays are on the disk. Returns what kept it from that, or None."""
    try:
        write_text(os.path.join(folder, "index.json"), json.dumps(index))
    except InputError as error:
        return error


def decode(decoder, clip, found, path, size):
    """Read a clip as training or evaluation does, and write its arrays to `path` if they fit into `size` bytes.

    Returns:
        (its Entry, None or the OSError that kept it from being written).

    Raises:
        ClipError: one of its files cannot be decoded.
    """
    torch.set_num_threads(1)
    for suffix in (".f32", ".u8"):  # what was made of it before it changed
        with suppress(OSError):
            os.remove(path + suffix)
    file = clip.wav
    try:
        sound, pictures = decoder.sound(clip), []
        for k, name in enumerate(decoder.frames(clip)):
            file = os.path.join(clip.folder, name)
            pictures.append(decoder.picture(clip, k))
            with Image.open(file) as image:
                image.load()  # raises for a truncated file; OpenCV fills up with grey
    except InputError as error:
        raise ClipError(f"{file}: {str(error).removeprefix(f'{file}: ').partition(';')[0]}") from None
    except ClipError:
        raise
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise ClipError(f"{file}: {str(error) or f'its decoder ended with {type(error).__name__}'}") from None
    entry = Entry(found, "", list(sound.shape), [list(picture.shape) for picture in pictures])
    if sum(Stored(path, *entry[2:]).sizes()) <= size:
        try:
            write_array(f"{path}.f32", [sound])
            write_array(f"{path}.u8", pictures)
        except OSError as error:
            return entry, error
    return entry, None


def write_array(path, tensors):
    """Write tensors one behind the other, whole or not at all."""
    partial = f"{path}.{os.getpid()}"
    try:
        with open(partial, "wb") as file:
            for tensor in tensors:
                file.write(tensor.contiguous().numpy())
            file.flush()
            os.fsync(file.fileno())  # before the index vouches for it
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
