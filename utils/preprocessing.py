"""From raw clips to files that training reads: the work itself, shared by the scripts under data/."""

import os
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
from tqdm import tqdm

LFS_HEADER = b"version https://git-lfs.github.com/spec"
PARTIAL = ".partial-"  # a folder of this prefix is being written; one left over from a killed run is removed


class ClipError(Exception):
    """A clip that cannot be processed; the message says why, and the other clips go on."""


def extract_frames(video, folder, per_second=1):
    """Write frames 0, k, 2k, ... of a video to `folder` as `<frame index, 5 digits>.jpg`, all of them or nothing.

    k = int(frames per second / per_second), at least 1 (DESIGN section 1, Datasets). Frames between are decoded but
    never converted to pictures. A `folder` that is there already is complete, and is left alone.

    Returns:
        "done", or "already there".

    Raises:
        ClipError: a Git LFS pointer in place of the video, or nothing that can be decoded.
    """
    video, folder = Path(video), Path(folder)
    if folder.is_dir():
        return "already there"
    with open(video, "rb") as file:
        if file.read(len(LFS_HEADER)) == LFS_HEADER:
            raise ClipError("a Git LFS pointer, not the video; run `git lfs pull` where you cloned the dataset")
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    rate = capture.get(cv2.CAP_PROP_FPS)
    if not capture.isOpened() or not rate > 0:
        raise ClipError("cannot be decoded; download it again")
    step = max(1, int(rate / per_second))
    partial = folder.with_name(f"{PARTIAL}{folder.name}")
    partial.mkdir(parents=True)
    try:
        number = 0
        while capture.grab():
            if number % step == 0:
                decoded, frame = capture.retrieve()
                if not decoded or not cv2.imwrite(str(partial / f"{number:05d}.jpg"), frame):
                    raise ClipError(f"frame {number} cannot be decoded or written; check the clip and the disk")
            number += 1
        if number == 0:
            raise ClipError("cannot be decoded (no frame in it); download it again")
        partial.rename(folder)
    finally:
        capture.release()
        shutil.rmtree(partial, ignore_errors=True)
    return "done"


def process_clips(function, jobs, workers=None):
    """Call `function(*arguments)` for every job in parallel, with a progress bar; a ClipError concerns its clip alone.

    Args:
        function: a top-level function that returns "done" or "already there".
        jobs: {clip name: arguments}.
        workers: processes; None for one per core.

    Returns:
        (Counter of results, {clip name: reason} of the failures).
    """
    results, failures = Counter(), {}
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=quiet_opencv) as pool:
        futures = {pool.submit(function, *arguments): name for name, arguments in jobs.items()}
        for future in tqdm(as_completed(futures), total=len(futures), unit="clip", disable=not sys.stderr.isatty()):
            try:
                results[future.result()] += 1
            except (ClipError, OSError) as error:
                failures[futures[future]] = str(error)
    return results, dict(sorted(failures.items()))


def quiet_opencv():
    """One thread per process, and no decoder's chatter: failures are reported by clip."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"


def remove_partial(folder):
    """Remove what an interrupted run left half-written in `folder`."""
    for path in Path(folder).glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def print_summary(results, failures):
    """Print what became of the clips: done, already there, failed and why."""
    print(f"{results['done']} done, {results['already there']} already there, {len(failures)} failed")
    for name, reason in failures.items():
        print(f"  failed: {name}: {reason}")
