"""Extract audio and frames of a dataset's raw videos. The scripts under data/ call this."""

import itertools
import os
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2

from data.media import DAMAGED, extract_audio, extract_frames
from dataset import DATASETS
from utils.config import at_least
from utils.errors import InputError, OneLineParser
from utils.files import lock_folder, remove, write_csv
from utils.pool import TIME_LIMIT, ClipError, each_clip

UNFINISHED = ".partial"  # folder of unfinished outputs, in the folder of the outputs
MAX_LISTED_NAMES = 20
CLOCK_STEP = 2 * 10**9  # ns, between the times that FAT can store
SLOWEST = 10**5  # bytes of video that a core decodes per second, at least: films of drawings have a low bit rate
FOLDERS = {  # flags that some datasets have: what the folder holds
    "target": "folder to write to, if --root is read-only (default: --root)",
    "split_path": "folder of the dataset's lists (default: %(default)s)",
    "source": "folder of the raw train/ and val/ (default: %(default)s)",
}


def extract_dataset(name, kinds):
    """Run a script: parse its flags, and extract the "audio", the "frames" or both of a dataset's raw videos.

    Raises:
        InputError: a flag is wrong, there is no video, or every video fails.
    """
    source = DATASETS[name]()
    args = extraction_parser(source, kinds).parse_args()
    videos, missing = source.videos(args)
    for kind in kinds:
        if len(kinds) > 1:
            print(f"== {kind}")
        extract_all(source, kind, videos, missing, args)


def dataset_parser(description, root):
    """Return a parser with --root, the folder of the dataset."""
    parser = OneLineParser(description=description)
    help_text = "folder of the dataset (default: %(default)s)"
    parser.add_argument("--root", type=Path, default=Path(root), metavar="DIR", help=help_text)
    return parser


def add_folder(parser, name, default=None):
    """Add the flag `name` of FOLDERS to a parser."""
    default = default and Path(default)
    parser.add_argument(f"--{name}", type=Path, default=default, metavar="DIR", help=FOLDERS[name])


def extraction_parser(source, kinds):
    """Return the parser of a script that extracts a dataset's audio, frames, or both."""
    parser = dataset_parser(f"Extract {' and '.join(kinds)} of {type(source).__name__}.", source.root)
    for name in source.raw_flags:
        add_folder(parser, name, getattr(source, name, None))
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--keep_damaged",
        action="store_true",
        help="keep the decodable part of truncated or damaged clips and list them (default: reject them)",
    )
    if "frames" in kinds:
        parser.add_argument("--fps", type=at_least(1), default=1, metavar="N", help="frames per second (default: 1)")
        parser.add_argument(
            "--min_frames",
            type=at_least(1),
            default=source.num_frame,
            metavar="N",
            help="reject clips with fewer frames; training needs --num_frame of them (default: %(default)s)",
        )
    return parser


def outputs_of(args):
    """Return the folder that a script under data/ writes to: --target, or --root itself."""
    return getattr(args, "target", None) or args.root


def extract_all(source, kind, videos, missing, args):
    """Extract the audio or the frames of all videos that are not extracted yet, and print a summary.

    Failures, and damaged videos that are kept, are listed in failed_audio.csv or failed_frames.csv.

    Args:
        source: the dataset.
        kind: "audio" or "frames".
        videos, missing: as `source.videos` returns them.
        args: flags of `extraction_parser`.

    Raises:
        InputError: there is no video, every video fails, or the outputs' folder is in use or cannot be written.
    """
    folder = outputs_of(args)
    report = folder / f"failed_{kind}.csv"
    if not videos:
        note = f", {missing}" if missing else ""
        raise InputError(f"{args.root}: no video of the dataset found{note}; get the videos as its readme describes")
    if kind == "audio":
        target = Path(source.audio_path.format(root=folder))
        outputs = {name: target / source.wav(split, clip_id) for name, split, clip_id, _ in videos}
        function = partial(extract_audio, keep_damaged=args.keep_damaged)
    else:
        target = Path(source.visual_path.format(root=folder))
        outputs = {name: target / source.frames(split, clip_id, args.fps) for name, split, clip_id, _ in videos}
        settings = {"per_second": args.fps, "min_frames": args.min_frames, "keep_damaged": args.keep_damaged}
        function = partial(extract_frames, **settings)
    unfinished, flag = target / UNFINISHED, "--target" if hasattr(args, "target") else "--root"
    with lock_folder(target, flag):
        try:
            remove(unfinished)  # of a run that was killed
            unfinished.mkdir()
        except OSError as error:
            raise InputError(f"{unfinished}: {error.strerror}; change the folder's permissions, or {flag}") from None
        try:
            jobs = {name: (video, outputs[name], unfinished) for name, _, _, video in videos}
            results, failures, kept = extract_changed(function, jobs, args.workers)
        finally:
            with suppress(OSError):
                remove(unfinished)
        write_failures(report, failures | {name: f"kept: {reason}" for name, reason in kept.items()})
    print_summary(results, failures, missing, report, kept)
    if not results.total():
        raise InputError(f"{report}: no clip could be processed; fix the clips by the reasons in this file")


def extract_changed(function, jobs, workers):
    """Run the jobs whose outputs are missing, or made of another version of the video.

    An output gets the modification time of its video. If the times differ, the video has changed, and its output is
    replaced once the new one is complete. Outputs of damaged videos that were kept are removed and extracted again.

    Args:
        function: `extract_audio` or `extract_frames` with its settings bound.
        jobs: {name: (video, output, folder for unfinished outputs)}.
        workers: number of processes; None for one per core.

    Returns:
        (Counter of results, {name: reason} of the failures, and {name: reason} of damaged clips that are kept).
    """
    results, failures, kept, todo = Counter(), same_output(jobs), {}, {}
    for name in sorted(jobs.keys() - failures.keys()):
        video, output, _ = jobs[name]
        made, changed = modification_time(output), modification_time(video)
        if made == DAMAGED:
            with suppress(OSError):  # if it cannot be replaced, its clip fails
                remove(output)
        elif None not in (made, changed) and abs(made - changed) < CLOCK_STEP:
            results["already there"] += 1
            continue
        todo[name] = jobs[name]
    for name, result in each_clip(function, todo, workers, start=quieten_decoders, limit=time_limit):
        if isinstance(result, ClipError):
            failures[name] = str(result)
            continue
        results["done"] += 1
        kept |= {name: result} if result != "done" else {}
    return results, dict(sorted(failures.items())), dict(sorted(kept.items()))


def modification_time(path):
    """Return when a file or folder was changed last, in ns; None if it is missing or cannot be read."""
    with suppress(OSError):
        return os.stat(path).st_mtime_ns


def time_limit(video, *_):
    """Return after how many seconds the extraction of a video counts as hung."""
    with suppress(OSError):
        return TIME_LIMIT + os.path.getsize(video) / SLOWEST
    return TIME_LIMIT


def same_output(jobs):
    """Return {name: reason} of the videos that would have the same output, so that their parts would mix."""
    names = defaultdict(list)
    for name, (_, output, _) in jobs.items():
        names[output].append(name)
    reasons = {
        output: f"same output as another video: {' and '.join(sorted(same))}; remove all but one"
        for output, same in names.items()
        if len(same) > 1
    }
    return {name: reasons[output] for name, (_, output, _) in jobs.items() if output in reasons}


def quieten_decoders():
    """Limit OpenCV to one thread in this process, and silence its log: failures are reported by clip."""
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def write_failures(path, failures):
    """Write {name: reason} to a CSV file, or remove the file if there are none.

    Raises:
        InputError: the file cannot be written or removed.
    """
    try:
        if failures:
            write_csv(path, [("clip", "reason"), *failures.items()])
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; remove it, because no clip fails any more") from None


def print_summary(results, failures, missing="", report=None, kept=()):
    """Print how many clips are done, already there, failed and why, missing, and kept although damaged."""
    note = f", {missing}" if missing else ""
    note += f", {len(kept)} damaged but kept" if kept else ""
    print(f"{results['done']} done, {results['already there']} already there, {len(failures)} failed{note}")
    for reason, count in Counter(reason.partition(":")[0] for reason in failures.values()).most_common():
        print(f"  {count} {reason}")
    for name, reason in itertools.islice(failures.items(), MAX_LISTED_NAMES):
        print(f"  failed: {name}: {reason}")
    if (failures or kept) and report:
        print(f"  all of them: {report}")
