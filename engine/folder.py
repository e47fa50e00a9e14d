"""Name, create, lock and check the folder of a run, and write its run.json.

The name of the folder depends on the settings only.
"""

import hashlib
import os
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dataset import DATASETS
from engine.provenance import provenance
from methods import METHODS
from models.weights import load_checkpoint
from utils.config import DEFAULTS, NAMED, PATHS, changes_results, differing, format_value
from utils.errors import InputError, set_overwritten
from utils.files import lock_folder, read_json, write_json
from utils.processes import first_process, gather, rank

RECORD, LAST, RESULT = "run.json", "last.pth", "result.json"
RUN_FILES = ("best.pth", LAST, "log.jsonl", RESULT, RECORD, "start.json", "skipped.csv", "curves.png")
RUN_FILES += ("confusion.png", "best.json", "last.json", "predictions.csv", "suppression.png")


def folder_of(settings):
    """Return the folder of a run: `ckpt/<dataset>/<method>-<tuned flag><value>-seed<seed>-<other settings>`.

    The other settings are those that change results and differ from the dataset's defaults, and the runs and teachers
    that a method uses. If the clips are in other folders than the dataset's, <dataset> includes a hash of the folders.

    Args:
        settings: complete Namespace, as `engine.settings.parse_training` returns it.
    """
    values, tuned_flag = vars(settings), METHODS[settings.method].tuned_flag
    name = (
        settings.method
        + (f"-{tuned_flag}{format_value(values[tuned_flag])}" if tuned_flag else "")
        + f"-seed{settings.random_seed}"
    )
    defaults = DEFAULTS | DATASETS[settings.dataset].defaults()
    for flag in sorted(values):
        omitted = flag in {"method", "modality", "dataset", "random_seed", tuned_flag}
        omitted = omitted or not (changes_results(flag) or flag in NAMED)
        if not omitted and values[flag] != defaults.get(flag):
            name += f"-{flag}{format_value(values[flag])}"
            if os.sep in str(values[flag]):  # files with the same name can be in several folders
                name += f"-{short_hash(values[flag])}"
    return os.path.join("ckpt", dataset_name(settings), name)


def dataset_name(settings):
    """Return the dataset's name in lower case; if the clips are in other folders, add their name and a hash."""
    name, defaults = settings.dataset.lower(), DATASETS[settings.dataset].complete({})
    names = [flag for flag in PATHS if flag in defaults] or ["root"]
    paths = {flag: os.path.relpath(getattr(settings, flag, "") or ".") for flag in names}
    moved = [path for flag, path in paths.items() if path != os.path.relpath(defaults.get(flag) or ".")]
    if not moved:
        return name
    return f"{name}-{'-'.join(Path(moved[-1]).absolute().parts[-2:])}-{short_hash(*paths.values())}"


def short_hash(*parts):
    """Return a hash of some texts, six hexadecimal digits."""
    return hashlib.blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=3).hexdigest()


def has_any_file(folder, *names):
    """Return True if a folder contains any of these files."""
    return any(os.path.exists(os.path.join(folder, name)) for name in names)


def read_record(path):
    """Read a run.json and return {"settings": .., "data": .., "starts": [..]}.

    Raises:
        InputError: the file is missing, or is not a run.json.
    """
    try:
        record = read_json(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; use the run.json of a run") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise InputError(f"{path}: not the run.json of a run; use another file, or remove this one")
    return record


def recorded_settings(folder):
    """Return the settings of the run in a folder, or None without a run.

    Raises:
        InputError: the settings cannot be read.
    """
    if has_any_file(folder, RECORD):
        return read_record(os.path.join(folder, RECORD))["settings"]
    if has_any_file(folder, LAST):
        return load_checkpoint(os.path.join(folder, LAST))["settings"]
    return result_of(folder)[1]


def result_of(folder):
    """Return the last epoch and the settings of a finished run from result.json, or (-1, None) if it is missing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        result = read_json(os.path.join(folder, RESULT))
        return int(result["last"]["epoch"]), result.get("settings")
    return -1, None


def is_finished(settings):
    """Return True if the run in settings.ckpt_path has done settings.epochs epochs and has its result."""
    return result_of(settings.ckpt_path)[0] + 1 >= settings.epochs and not settings.overwrite


def check_settings(settings):
    """Check that the run in the folder, if any, can be resumed with these settings or is to be overwritten.

    Raises:
        InputError: the run has other settings, or its last.pth is missing.
    """
    path = settings.ckpt_path
    if settings.overwrite or not has_any_file(path, LAST, RESULT):
        return
    for name, ours, theirs in differing(vars(settings), recorded_settings(path) or vars(settings)):
        raise InputError(
            f"--{name} {ours}: the run in {path} has {theirs}; use the same value, leave out --ckpt_path for a new "
            "folder, or start again with --overwrite"
        )
    if not has_any_file(path, LAST) and not is_finished(settings):
        raise InputError(
            f"--epochs {settings.epochs}: the run in {path} has ended, and without {LAST} it cannot be "
            "resumed; choose another --ckpt_path, or start again with --overwrite"
        )


@contextmanager
def run_folder(settings):
    """Create and lock a run's folder while the block lasts; without settings.ckpt_path, set it to `folder_of`.

    Raises:
        InputError: another run writes into the folder, it cannot be written to, or its run has other settings.
    """
    with ExitStack() as stack:
        with first_process():
            if rank() == 0:
                settings.ckpt_path = settings.ckpt_path or folder_of(settings)
                stack.enter_context(lock_folder(settings.ckpt_path, "--ckpt_path"))
                check_settings(settings)
        settings.ckpt_path = gather(settings.ckpt_path)[0]
        if not all(gather(os.path.isdir(settings.ckpt_path))):
            raise InputError(
                f"{settings.ckpt_path}: does not exist on all machines; choose a --ckpt_path on a disk that they share"
            )
        yield


def check_data(settings, data):
    """Check that the run in the folder, if any, used the clips that are listed now.

    Of a finished run only the training clips are checked, so that other test clips can be evaluated.

    Args:
        data: `Data.description`, of all listed clips, also those that cannot be decoded.

    Raises:
        InputError: the run used other clips.
    """
    path = os.path.join(settings.ckpt_path, RECORD)
    before = (
        {} if settings.overwrite or not has_any_file(settings.ckpt_path, RECORD) else read_record(path).get("data", {})
    )
    for split in ("train",) if is_finished(settings) else data:
        if before.get(split, data[split]) != data[split]:
            raise InputError(
                f"{settings.ckpt_path}: {'trained' if split == 'train' else 'evaluated'} on other clips, "
                f"{before[split]['clips']} were listed then, {data[split]['clips']} now; use --overwrite to train "
                "again, or another --ckpt_path to keep both"
            )


def write_record(settings, data):
    """Write run.json, or if the run resumes, add this start to it. With --overwrite, remove the files of the old run.

    Args:
        data: `Data.description`.
    """
    if settings.overwrite:
        for name in RUN_FILES:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(settings.ckpt_path, name))
        set_overwritten(True)
    path, before = os.path.join(settings.ckpt_path, RECORD), {}
    if has_any_file(settings.ckpt_path, LAST) and os.path.exists(path):
        before = read_record(path)
    starts = [*before.get("starts", ()), provenance()]
    write_json(path, {"settings": vars(settings), "data": before.get("data", data), "starts": starts})
