"""Find the raw videos of a dataset in a folder."""

import sys
from collections import Counter, defaultdict
from pathlib import Path

from utils.errors import InputError
from utils.files import folder_hint

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".flv", ".mpg", ".mpeg", ".m4v", ".3gp")


def list_videos(folder, flag):
    """Return the videos in a folder, in order, without names that start with a dot, which macOS writes next to files.

    Raises:
        InputError: no such folder; the message names `flag` as the one to change.
    """
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError as error:
        path = error.filename or folder
        raise InputError(
            f"{path}: {error.strerror}{folder_hint(path)}; put the dataset's videos there, or change {flag}"
        ) from None
    return [path for path in paths if is_video(path)]


def is_video(path):
    """Return True if a path is named like a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def list_classes(folder):
    """Return the class folders in a folder, in order, without names that start with a dot; may raise OSError."""
    return [path for path in sorted(Path(folder).iterdir()) if path.is_dir() and not path.name.startswith(".")]


def find_videos(folder, ids, aliases=None):
    """Find the clips that are in a folder as `<id>` with any of VIDEO_SUFFIXES, in any case.

    Args:
        folder: path.
        ids: the clips on the dataset's lists.
        aliases: a function that returns other names of a clip; names that two clips share are not used.

    Returns:
        ([(id, path), ...] with all videos of an id, and a text about missing clips and videos of other names, or "").

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

    A warning names the classes that have no folder.

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
        try:
            folders = list_classes(source / name)
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}; make it readable, or change --source") from None
        names = {folder.name.replace(" ", "_") for folder in folders}
        if missing := [label for label in classes or () if label not in names]:
            print(f"warning: {source / name}: no folder of {', '.join(missing)}", file=sys.stderr)
        for folder in folders:
            label = folder.name.replace(" ", "_")
            if classes is None or label in classes:
                found += [(split, label, video) for video in list_videos(folder, "--source")]
    if not found:
        there = f"{len(flat)} are outside of such folders, sort them by class" if flat else "put Kinetics-400 there"
        raise InputError(f"{source}: no video in a folder train/<class>/ or val/<class>/; {there}, or change --source")
    return found
