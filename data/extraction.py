"""From raw clips to files that training reads: the work itself, shared by the scripts under data/."""

import io
import itertools
import os
import re
import shutil
import subprocess
import uuid
import wave
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import cv2
import imageio_ffmpeg

from data.flv import shorten_flv
from utils.errors import InputError
from utils.files import exclusive, write_csv
from utils.pool import ClipError, process_clips

LFS_HEADER = b"version https://git-lfs.github.com/spec"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv", ".mpg", ".mpeg", ".m4v", ".3gp")
SOUND_RATE = 16000  # Hz
UNFINISHED = ".partial"  # in the target folder; what is being written is in here until it is whole
NAMES_SHOWN = 20


class SilentClip(ClipError):
    """A video without sound."""


def find_videos(folder, ids):
    """The clips that are in a folder as `<id>.mp4` -> ({id: path}, number of those that are missing).

    Raises:
        InputError: no such folder.
    """
    try:
        present = set(os.listdir(folder))
    except OSError:
        raise InputError(f"{folder}: no such folder; put the dataset's videos there, or change --root") from None
    ids = set(ids)
    videos = {clip_id: folder / f"{clip_id}.mp4" for clip_id in sorted(ids) if f"{clip_id}.mp4" in present}
    return videos, len(ids) - len(videos)


def find_class_videos(source, classes=None):
    """Walk Kinetics in its raw form, `<source>/{train,val}/<class>/<video>`, `test` where there is no `val`.

    Args:
        source: folder.
        classes: names of the classes to keep, with underscores; None for all.

    Yields:
        ("train" or "test", class name with underscores, path of the video).

    Raises:
        InputError: no such folder.
    """
    for split, name in (("train", "train"), ("test", "val" if (source / "val").is_dir() else "test")):
        try:
            folders = sorted(path for path in (source / name).iterdir() if path.is_dir())
            videos = {folder: sorted(folder.iterdir()) for folder in folders}
        except OSError as error:
            path = error.filename or source / name
            raise InputError(f"{path}: {error.strerror}; put Kinetics-400 there, or change --source") from None
        for folder in folders:
            class_name = folder.name.replace(" ", "_")
            if classes is None or class_name in classes:
                for video in videos[folder]:
                    if video.suffix.lower() in VIDEO_SUFFIXES:
                        yield split, class_name, video


def extract_frames(video, folder, unfinished, per_second=1, min_frames=1):
    """Write frames 0, k, 2k, ... of a video to `folder` as `<frame index, 5 digits>.jpg`, all of them or nothing.

    k = int(frames per second / per_second), at least 1 (the authors' rule). Other frames are never converted
    to pictures, and in an FLV not even decoded unless a kept one depends on them. A `folder` that is there already is
    complete, and is left alone. `unfinished` is a folder on the same disk, to write in.

    Returns:
        "done", or "already there".

    Raises:
        ClipError: a Git LFS pointer, nothing that can be decoded, or fewer than `min_frames` frames.
    """
    video, folder = Path(video).absolute(), Path(folder)
    if folder.is_dir():
        return "already there"
    refuse_pointer(video)
    rate = open_video(str(video)).get(cv2.CAP_PROP_FPS)
    if not rate > 0:
        raise ClipError("not decodable: no video in it; download it again")
    step = max(1, int(rate / per_second))
    shortened = shorten_flv(video.read_bytes(), step) if video.suffix.lower() == ".flv" else None
    with written_whole(folder, unfinished) as pictures:
        try:
            if not shortened or save_frames(io.BytesIO(shortened[0]), shortened[1], step, pictures) < len(shortened[1]):
                save_frames(str(video), itertools.count(), step, pictures)
        except cv2.error as error:
            raise ClipError(str(error)) from None
        count = len(os.listdir(pictures))
        if count == 0:
            raise ClipError("not decodable: no frame in it; download it again")
        if count < min_frames:
            raise ClipError(f"too short: {count} frame(s) at {per_second} a second, {min_frames} are needed")
    return "done"


def open_video(source):
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def save_frames(source, numbers, step, folder):
    """Write those frames of a video whose number divides by `step` to a new `folder`, which is emptied if it is there.

    Args:
        source: a path, or the file in memory.
        numbers: those of the frames in it.

    Returns:
        how many frames there were.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    capture = open_video(source)
    count = 0
    for number in numbers:
        if not capture.grab():
            break
        if number % step == 0:
            decoded, frame = capture.retrieve()
            if not decoded:
                raise ClipError(f"not decodable: frame {number}; download it again")
            if not cv2.imwrite(str(folder / f"{number:05d}.jpg"), frame):
                raise ClipError("not writable: check the disk")
        count += 1
    return count


def extract_sound(video, wav, unfinished, ffmpeg):
    """Write a video's sound to `wav`, 16 kHz, 16 bit, mono (the reader averages channels anyway), whole or not at all.

    Of several tracks it is the one that FFmpeg prefers. A `wav` that is there already is complete, and is left alone.
    `unfinished` is a folder on the same disk, to write in; `ffmpeg` is the program.

    Returns:
        "done", or "already there".

    Raises:
        ClipError: a Git LFS pointer, no sound track, one without a sample, or nothing that can be decoded.
    """
    video, wav = Path(video).absolute(), Path(wav)
    if wav.exists():
        return "already there"
    refuse_pointer(video)
    # the samples come through a pipe, so that FFmpeg ends with us, also when we are killed
    command = [ffmpeg, "-nostdin", "-v", "error", "-i", f"file:{video}", "-vn", "-ac", "1", "-ar", str(SOUND_RATE)]
    command += ["-c:a", "pcm_s16le", "-f", "s16le", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        message = done.stderr.decode(errors="replace")
        if "does not contain any stream" in message:
            raise SilentClip("no sound track")
        first_line = re.sub(r"^\[(\S+) @ \w+\]", r"[\1]", message).partition("\n")[0]
        raise ClipError(f"not decodable: {first_line or f'FFmpeg ended with status {done.returncode}'}")
    if not done.stdout:
        raise SilentClip("too short: not one sample of sound")
    with written_whole(wav, unfinished) as path, wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SOUND_RATE, 0, "NONE", "not compressed"))
        file.writeframes(done.stdout)
    return "done"


def extract_clip(video, wav, frames, ffmpeg, per_second, min_frames):
    """`extract_sound` to `wav`, which stays away when there is none, and `extract_frames` to the folder `frames`."""
    with suppress(SilentClip):
        extract_sound(video, wav, wav.parent, ffmpeg)
    return extract_frames(video, frames, frames.parent, per_second, min_frames)


def find_ffmpeg():
    """The machine's FFmpeg where there is one, else the packaged one.

    Raises:
        InputError: there is neither.
    """
    try:
        return shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise InputError("ffmpeg: not on this machine, and none is packaged for it; install FFmpeg") from None


def refuse_pointer(video):
    with open(video, "rb") as file:
        if file.read(len(LFS_HEADER)) == LFS_HEADER:
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


def extract_all_frames(jobs, target, args, missing=0):
    """`extract_frames` for all `jobs`, as `extract_all`; args: fps, min_frames, root, workers."""
    function = partial(extract_frames, per_second=args.fps, min_frames=args.min_frames)
    extract_all(function, jobs, target, args.root / "failed_frames.csv", args.workers, missing)


def extract_all_sound(jobs, target, args, missing=0):
    """`extract_sound` for all `jobs`, as `extract_all`; args: root, workers."""
    function = partial(extract_sound, ffmpeg=find_ffmpeg())
    extract_all(function, jobs, target, args.root / "failed_sound.csv", args.workers, missing)


def extract_all(function, jobs, target, report, workers, missing):
    """Process a dataset's clips, all that are not there yet; print a summary and write the failures to `report`.

    Args:
        function: `extract_frames` or `extract_sound` with its settings bound.
        jobs: {clip name: (video, output)}, outputs anywhere below `target`.
        target: folder.
        report: CSV file, rows `clip,reason` below a header; removed when nothing fails.
        workers: processes; None for one per core.
        missing: number of clips on the dataset's lists that have no video, to be shown.

    Raises:
        InputError: there is no clip, or each one fails.
    """
    if not jobs:
        raise InputError(
            f"{report.parent}: no video of the dataset found, {missing} missing; its readme says how to get it"
        )
    unfinished = target / UNFINISHED
    with exclusive(target, "--root"):
        try:
            remove(unfinished)  # of a run that was killed
            unfinished.mkdir()
        except OSError as error:
            raise InputError(f"{unfinished}: {error.strerror}; change the folder's permissions, or --root") from None
        try:
            jobs = {name: (*job, unfinished) for name, job in jobs.items()}
            results, failures = process_clips(function, jobs, workers, start=quieten_decoders)
        finally:
            remove(unfinished)
    write_failures(report, failures)
    print_summary(results, failures, missing, report)
    if not results:
        raise InputError(f"{report}: no clip could be processed, the reasons are in it")


def quieten_decoders():
    """One thread per process, and no decoder's chatter: failures are reported by clip."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"


def write_failures(path, failures):
    """Write {clip name: reason} to a CSV file, or remove it when there are none."""
    path.unlink(missing_ok=True)
    if failures:
        write_csv(path, [("clip", "reason"), *failures.items()])


def print_summary(results, failures, missing=0, report=None):
    """Print what became of the clips: done, already there, failed and why, missing."""
    note = f", {missing} missing" if missing else ""
    print(f"{results['done']} done, {results['already there']} already there, {len(failures)} failed{note}")
    for reason, count in Counter(reason.partition(":")[0] for reason in failures.values()).most_common():
        print(f"  {count} {reason}")
    for name, reason in itertools.islice(failures.items(), NAMES_SHOWN):
        print(f"  failed: {name}: {reason}")
    if failures and report:
        print(f"  all of them: {report}")
