"""From raw clips to files that training reads: the work itself, shared by the scripts under data/."""

import itertools
import mmap
import os
import shutil
import subprocess
import sys
import uuid
import wave
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import cv2

from data.containers import TOLERANCE, fault, tracks
from data.frames import damage, save_video
from data.probe import complaint, find_ffmpeg, lateness, messages_kept
from data.sources import Sources
from utils.errors import InputError
from utils.files import exclusive, is_pointer, looked_in, write_csv
from utils.pool import ClipError, each_clip

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv", ".mpg", ".mpeg", ".m4v", ".3gp")
SOUND_RATE = 16000  # Hz
LATE = 0.1  # s by which sound may begin after the pictures
READ_WHOLE = 16 * 2**20  # bytes of a file up to which reading is faster than mapping
UNFINISHED = ".partial"  # in the target folder; what is being written is in here until it is whole
NAMES_SHOWN = 20


class SilentClip(ClipError):
    """A video without sound."""


def list_videos(folder, flag):
    """The videos in a folder, in order, without names that begin with a dot, such as macOS leaves beside files.

    Raises:
        InputError: no such folder; the message names `flag` as the one to change.
    """
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError as error:
        path = error.filename or folder
        raise InputError(
            f"{path}: {error.strerror}{looked_in(path)}; put the dataset's videos there, or change {flag}"
        ) from None
    return [path for path in paths if is_video(path)]


def is_video(path):
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def find_videos(folder, ids, aliases=None):
    """The clips that are in a folder as `<id>` with any of VIDEO_SUFFIXES, in any case.

    Args:
        folder: path.
        ids: the clips on the dataset's lists.
        aliases: a function that gives the other names by which a clip may go; one that two clips share is nobody's.

    Returns:
        ([(id, path), ...], both of two videos of one id, and words on the clips that are missing and on videos of other
        names; "" where there are none).

    Raises:
        InputError: no such folder.
    """
    videos, by_stem = list_videos(folder, "--root"), defaultdict(list)
    for path in videos:
        by_stem[path.stem].append(path)
    claims = Counter(alias for clip_id in ids for alias in (aliases(clip_id) if aliases else ()))
    found, missing = [], []
    for clip_id in sorted(set(ids)):
        others = [alias for alias in (aliases(clip_id) if aliases else ()) if claims[alias] == 1 and alias not in ids]
        name = next((name for name in (clip_id, *others) if name in by_stem), None)
        if name is None:
            missing.append(clip_id)
        found += [(clip_id, path) for path in by_stem[name]] if name is not None else []
    words = f"{len(missing)} missing" if missing else ""
    unknown = sorted(path.name for path in set(videos) - {path for _, path in found})
    if unknown:
        words += ", " * bool(words) + f"{len(unknown)} of other names in {folder}, such as {unknown[0]}"
        words += f" (looked for {missing[0]}.mp4)" if missing else ""
    return found, words


def find_class_videos(source, classes=None):
    """Walk Kinetics in its raw form, `<source>/{train,val}/<class>/<video>`, `test` where there is no `val`.

    Names that begin with a dot are passed over. Classes without a folder are told on stderr.

    Args:
        source: folder.
        classes: names of the classes to keep, with underscores; None for all.

    Returns:
        [("train" or "test", class name with underscores, path of the video), ...].

    Raises:
        InputError: no such folder, or no video in a folder of a class.
    """
    found, flat = [], []
    for split, name in (("train", "train"), ("test", "val" if (source / "val").is_dir() else "test")):
        flat += list_videos(source / name, "--source")
        folders = [path for path in sorted((source / name).iterdir()) if path.is_dir() and path.name[0] != "."]
        names = {folder.name.replace(" ", "_") for folder in folders}
        if lacking := [label for label in classes or () if label not in names]:
            print(f"warning: {source / name}: no folder of {', '.join(lacking)}", file=sys.stderr)
        for folder in folders:
            label = folder.name.replace(" ", "_")
            if classes is None or label in classes:
                found += [(split, label, video) for video in list_videos(folder, "--source")]
    if not found:
        there = f"{len(flat)} lie outside of such folders, sort them by class" if flat else "put Kinetics-400 there"
        raise InputError(f"{source}: no video in a folder train/<class>/ or val/<class>/; {there}, or change --source")
    return found


def extract_frames(video, folder, unfinished, per_second=1, min_frames=1, keep_damaged=False):
    """Write pictures of a video to `folder`, as `frames.save_video` chooses and names them: all of them or nothing.

    A `folder` that is there already is complete, and is left alone. `unfinished` is a folder on the same disk, to write
    in.

    Returns:
        "done", or "already there"; with `keep_damaged` why the video is not whole, and what is there of it is taken.

    Raises:
        ClipError: a Git LFS pointer, a video that is truncated, damaged or cannot be decoded, or fewer than
            `min_frames` pictures.
    """
    video, folder = Path(video).absolute(), Path(folder)
    if folder.is_dir():
        return "already there"
    refuse_pointer(video)
    with content_of(video) as data, written_whole(folder, unfinished) as pictures, messages_kept():
        reason = refuse_damage(fault(data), keep_damaged)
        try:
            found = save_video(video, data, per_second, pictures)
        except cv2.error as error:
            raise ClipError(f"not decodable: {error}") from None
        reason = reason or refuse_damage(found, keep_damaged)
        count = len(os.listdir(pictures))
        if count < min_frames:
            raise ClipError(f"too short: {count} frame(s) at {per_second} a second, {min_frames} are needed")
    return reason or "done"


def extract_sound(video, wav, unfinished, ffmpeg, keep_damaged=False):
    """Write a video's sound to `wav`, 16 kHz, 16 bit, mono (the reader averages channels anyway), whole or not at all.

    Of several tracks it is the one that FFmpeg prefers. Where it begins after the pictures, silence stands before it. A
    `wav` that is there already is complete, and is left alone. `unfinished` is a folder on the same disk, to write in;
    `ffmpeg` is the program.

    Returns:
        "done", or "already there"; with `keep_damaged` why the video is not whole, and what is there of it is taken.

    Raises:
        ClipError: a Git LFS pointer, no sound track, one without a sample, or one that is truncated, damaged or cannot
            be decoded.
    """
    video, wav = Path(video).absolute(), Path(wav)
    if wav.exists():
        return "already there"
    refuse_pointer(video)
    with content_of(video) as data:
        reason = refuse_damage(fault(data), keep_damaged)
        promised = min((seconds for kind, seconds in tracks(data) if kind == "sound" and seconds), default=0)
    samples, log = decode_sound(video, ffmpeg)
    reason = reason or refuse_damage(damage(log), keep_damaged)
    if not samples:
        raise SilentClip("too short: not one sample of sound")
    late = lateness(log)
    if late > LATE:
        samples = bytes(2 * round(late * SOUND_RATE)) + samples
    seconds = len(samples) / 2 / SOUND_RATE
    if seconds < promised - TOLERANCE:
        short = f"truncated: {seconds:.1f} of {promised:.1f} s of sound; download it again"
        reason = reason or refuse_damage(short, keep_damaged)
    with written_whole(wav, unfinished) as path, wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SOUND_RATE, 0, "NONE", "not compressed"))
        file.writeframes(samples)
    return reason or "done"


def decode_sound(video, ffmpeg):
    """FFmpeg on the sound of a video -> (its samples as bytes, what FFmpeg said at its level "info").

    Raises:
        ClipError: there is none, or it cannot be decoded.
    """
    # the samples come through a pipe, so that FFmpeg ends with us, also when we are killed
    command = [ffmpeg, "-nostdin", "-nostats", "-hide_banner", "-v", "level+info", "-i", f"file:{video}"]
    command += ["-vn", "-sn", "-dn", "-ac", "1", "-ar", str(SOUND_RATE), "-c:a", "pcm_s16le", "-f", "s16le", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    log = done.stderr.decode(errors="replace")
    if done.returncode:
        if "does not contain any stream" in log:
            raise SilentClip("no sound track")
        words = complaint(log) or f"FFmpeg ended with status {done.returncode}"
        raise ClipError(f"not decodable: {words}; download it again")
    return done.stdout, log


def refuse_damage(reason, keep_damaged):
    """Return the reason why a file is not whole, "" if it is; raise it as a ClipError unless such files are kept."""
    if reason and not keep_damaged:
        raise ClipError(reason)
    return reason


@contextmanager
def content_of(path):
    """The bytes of a file, which are mapped into memory where they are many."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= READ_WHOLE:
            yield file.read()
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def extract_clip(video, wav, frames, ffmpeg, per_second, min_frames):
    """`extract_sound` to `wav`, which stays away when there is none, and `extract_frames` to the folder `frames`."""
    with suppress(SilentClip):
        extract_sound(video, wav, wav.parent, ffmpeg)
    return extract_frames(video, frames, frames.parent, per_second, min_frames)


def refuse_pointer(video):
    if is_pointer(video):
        raise ClipError("a Git LFS pointer, not the video: run `git lfs pull` where you cloned the dataset")


@contextmanager
def written_whole(target, unfinished):
    """A path in `unfinished` for a file or folder; it becomes `target` when the block ends well, else it is removed."""
    path = unfinished / uuid.uuid4().hex
    try:
        yield path
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    finally:
        remove(path)


def remove(path):
    """Remove a file, or a folder with all that is in it, if there is one."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def outputs_of(args):
    """The folder that a script under data/ writes to: --target, or --root itself."""
    return getattr(args, "target", None) or args.root


def extract_all_frames(jobs, target, args, missing=""):
    """`extract_frames` for all `jobs`, as `extract_all`; args: fps, min_frames, keep_damaged, root, target, workers."""
    function = partial(extract_frames, per_second=args.fps, min_frames=args.min_frames, keep_damaged=args.keep_damaged)
    extract_all(function, jobs, target, outputs_of(args) / "failed_frames.csv", args, missing)


def extract_all_sound(jobs, target, args, missing=""):
    """`extract_sound` for all `jobs`, as `extract_all`; args: keep_damaged, root, target, workers."""
    function = partial(extract_sound, ffmpeg=find_ffmpeg(), keep_damaged=args.keep_damaged)
    extract_all(function, jobs, target, outputs_of(args) / "failed_sound.csv", args, missing)


def extract_all(function, jobs, target, report, args, missing=""):
    """Process a dataset's clips, all that are not there yet; print a summary and write the failures to `report`.

    What was made of a file that has changed since is made anew, as is what was made of a damaged one unless such are
    kept. Of two videos that would have the same output neither is taken.

    Args:
        function: `extract_frames` or `extract_sound` with its settings bound.
        jobs: {clip name: (video, output)}, outputs anywhere below `target`.
        target: folder.
        report: CSV file, rows `clip,reason` below a header; removed when nothing fails and nothing damaged is kept.
        args: keep_damaged, and workers, processes; None for one per core.
        missing: words on the clips of the dataset's lists that have no video, to be shown.

    Raises:
        InputError: there is no clip, or each one fails.
    """
    if not jobs:
        note = f", {missing}" if missing else ""
        raise InputError(f"{report.parent}: no video of the dataset found{note}; its readme says how to get it")
    unfinished = target / UNFINISHED
    flag = "--target" if hasattr(args, "target") else "--root"
    with exclusive(target, flag):
        try:
            remove(unfinished)  # of a run that was killed
            unfinished.mkdir()
        except OSError as error:
            raise InputError(f"{unfinished}: {error.strerror}; change the folder's permissions, or {flag}") from None
        try:
            results, failures, kept = extract_new(function, jobs, target, unfinished, args)
        finally:
            remove(unfinished)
    write_failures(report, failures | {name: f"kept: {reason}" for name, reason in kept.items()})
    print_summary(results, failures, missing, report, kept)
    if not results.total():
        raise InputError(f"{report}: no clip could be processed, the reasons are in it")


def extract_new(function, jobs, target, unfinished, args):
    """Do those jobs of `extract_all` whose outputs are not there or not of the videos as they are now.

    Returns:
        (Counter of results, {clip name: reason} of the failures, and likewise of damaged clips that are kept).
    """
    sources, results, failures, kept, todo = Sources(target), Counter(), same_output(jobs), {}, {}
    for name in jobs.keys() - failures.keys():
        video, output = jobs[name]
        damaged = sources.damage(output)
        if sources.still_holds(video, output) and (args.keep_damaged or not damaged):
            results["already there"] += 1
            kept |= {name: damaged} if damaged else {}
        else:
            remove(output)
            todo[name] = (video, output, unfinished)
    states = {name: os.stat(video) for name, (video, *_) in todo.items() if os.path.exists(video)}
    try:
        for name, result in each_clip(function, dict(sorted(todo.items())), args.workers, start=quieten_decoders):
            if isinstance(result, ClipError):
                failures[name] = str(result)
                continue
            damaged = "" if result in ("done", "already there") else result
            results["already there" if result == "already there" else "done"] += 1
            kept |= {name: damaged} if damaged else {}
            sources.add(todo[name][1], states[name], damaged)
    finally:
        sources.finish()
    return results, dict(sorted(failures.items())), dict(sorted(kept.items()))


def same_output(jobs):
    """{clip name: reason} of the clips whose outputs would be one and the same, so that their parts would mix."""
    names = defaultdict(list)
    for name, (_, output) in jobs.items():
        names[output].append(name)
    failures = {}
    for same in names.values():
        if len(same) > 1:
            failures |= dict.fromkeys(same, f"two videos of one name: {' and '.join(sorted(same))}; remove all but one")
    return failures


def quieten_decoders():
    """One thread per process, and no chatter: failures are reported by clip, FFmpeg's errors are heeded (probe.py)."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.pop("OPENCV_FFMPEG_LOGLEVEL", None)


def write_failures(path, failures):
    """Write {clip name: reason} to a CSV file, or remove it when there are none."""
    path.unlink(missing_ok=True)
    if failures:
        write_csv(path, [("clip", "reason"), *failures.items()])


def print_summary(results, failures, missing="", report=None, kept=()):
    """Print what became of the clips: done, already there, failed and why, missing, kept though damaged."""
    note = f", {missing}" if missing else ""
    note += f", {len(kept)} damaged but kept" if kept else ""
    print(f"{results['done']} done, {results['already there']} already there, {len(failures)} failed{note}")
    for reason, count in Counter(reason.partition(":")[0] for reason in failures.values()).most_common():
        print(f"  {count} {reason}")
    for name, reason in itertools.islice(failures.items(), NAMES_SHOWN):
        print(f"  failed: {name}: {reason}")
    if (failures or kept) and report:
        print(f"  all of them: {report}")
