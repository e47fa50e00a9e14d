"""Every clip is decoded once before it is used; those that cannot be are left out, and the result is remembered."""

import hashlib
import json
import os
import sys

import numpy as np

from dataset.clips import load_image, load_waveform
from utils.errors import InputError
from utils.files import write_text
from utils.preprocessing import ClipError, process_clips


def leave_out_damaged(dataset, args, workers):
    """Take the clips of a ClipDataset that cannot be decoded off its `clips` and note why in its `damaged`.

    Clips are decoded by `workers` processes, with a progress bar. What is found is remembered in args.cache_path, by
    size and time of change of every file, so that the next run looks at changed clips alone.

    Raises:
        InputError: no clip is left.
    """
    key = "\n".join(map(os.path.abspath, (args.audio_path, args.visual_path)))
    path = os.path.join(args.cache_path, "checked", f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.json")
    known = read_known(path)
    found = {clip.id: fingerprint(clip) for clip in dataset.clips}
    unknown = {clip.id: (clip,) for clip in dataset.clips if known.get(clip.id, [None])[0] != found[clip.id]}
    if unknown:
        _, failures = process_clips(decode, unknown, workers, "checking clips")
        known |= {clip_id: [found[clip_id], failures.get(clip_id, "")] for clip_id in unknown}
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_text(path, json.dumps(known))
        except (OSError, InputError) as error:
            print(f"warning: --cache_path: {error}; clips will be checked again", file=sys.stderr)
    dataset.damaged = {clip_id: known[clip_id][1] for clip_id in found if known[clip_id][1]}
    dataset.clips = [clip for clip in dataset.clips if clip.id not in dataset.damaged]
    if not dataset.clips:
        reason = next(iter(dataset.damaged.values()))
        raise InputError(f"{args.dataset}: no clip is left that can be decoded; restore them; the first: {reason}")


def refuse_much_damage(datasets, max_skipped):
    """Raise InputError if more than the share `max_skipped` of the datasets' clips was damaged."""
    damaged = {clip_id: reason for dataset in datasets for clip_id, reason in dataset.damaged.items()}
    clips = len(damaged) + sum(map(len, datasets))
    if len(damaged) > max_skipped * clips:
        clip_id, reason = next(iter(damaged.items()))
        raise InputError(
            f"{len(damaged)} of {clips} clips cannot be decoded, more than --max_skipped {max_skipped:g} allows; "
            f"restore them or raise it; the first is {clip_id}: {reason}"
        )


def read_known(path):
    """What earlier runs found: {clip id: [fingerprint, reason or ""]}; nothing where the file is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        return known if all(len(entry) == 2 for entry in known.values()) else {}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def fingerprint(clip):
    """A digest of the names, sizes and times of change of a clip's files."""
    digest = hashlib.blake2b(digest_size=12)
    for path in (clip.wav, *(os.path.join(clip.folder, name) for name in clip.frames)):
        try:
            stat = os.stat(path)
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(os.fsencode(path) + b"\0" + state.encode() + b"\0")
    return digest.hexdigest()


def decode(clip):
    """Read all of a clip's files as training does.

    Raises:
        ClipError: one cannot be decoded.
    """
    for path in (clip.wav, *(os.path.join(clip.folder, name) for name in clip.frames)):
        try:
            if path == clip.wav:
                refuse_truncated(path)
                if not np.isfinite(load_waveform(path, rate=None)).all():
                    raise ClipError("samples that are not finite")
            else:
                load_image(path)
        except InputError as error:
            raise ClipError(f"{path}: {str(error).removeprefix(f'{path}: ').partition(';')[0]}") from None
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise ClipError(f"{path}: {str(error) or type(error).__name__}") from None
    return "done"


def refuse_truncated(path):
    """Raise ClipError for a wav whose header promises more bytes than there are; decoders read what is left of it.

    A size near 2 or 4 GB is that of a stream whose length was not known; a last byte of padding may be missing.
    """
    with open(path, "rb") as file:
        header = file.read(8)
    promised, size = int.from_bytes(header[4:], "little") + 8, os.path.getsize(path)
    if header[:4] == b"RIFF" and size + 1 < promised < 0x7FFFF000:
        raise ClipError(f"truncated, {size} of {promised} bytes")
