"""A run's folder: its name, which is a function of the settings alone, its lock, and run.json."""

import hashlib
import json
import os
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dataset import DATASETS
from engine.provenance import provenance
from methods import METHODS
from models.weights import load_checkpoint
from utils.config import DEFAULTS, NAMED, PATHS, changes_results, differing, format_value
from utils.errors import InputError
from utils.files import exclusive, write_json
from utils.processes import first_process, gather, rank

RECORD, LAST, RESULT = "run.json", "last.pth", "result.json"
OF_A_RUN = ("best.pth", LAST, "log.jsonl", RESULT, RECORD, "start.json", "skipped.csv", "curves.png")
OF_A_RUN += ("confusion.png", "best.json", "last.json", "predictions.csv", "suppression.png")


def folder_of(settings):
    """Return the folder of a run: `ckpt/<dataset>/<method>-<tuned flag><value>-seed<seed>-<other settings>`.

    The other settings are those that change results and are not the dataset's defaults. Clips from other folders than
    the dataset's have a name of their own, with a hash of these folders.

    Args:
        settings: complete Namespace, as `engine.settings.parse_training` returns it.
    """
    values, tuned = vars(settings), METHODS[settings.method].tuned
    name = (
        settings.method + (f"-{tuned}{format_value(values[tuned])}" if tuned else "") + f"-seed{settings.random_seed}"
    )
    usual = DEFAULTS | DATASETS[settings.dataset].defaults()
    for flag in sorted(values):
        left_out = flag in {"method", "modality", "dataset", "random_seed", tuned}
        left_out = left_out or not (changes_results(flag) or flag in NAMED)
        if not left_out and values[flag] != usual.get(flag):
            name += f"-{flag}{format_value(values[flag])}"
            if os.sep in str(values[flag]):  # files of the same name may lie in several folders
                name += f"-{short_hash(values[flag])}"
    return os.path.join("ckpt", dataset_name(settings), name)


def dataset_name(settings):
    """Return the dataset's name in lower case; of clips in other folders, with their folder's name and a hash."""
    name, usual = settings.dataset.lower(), DATASETS[settings.dataset].complete({})
    names = [flag for flag in PATHS if flag in usual] or ["root"]
    paths = {flag: os.path.relpath(getattr(settings, flag, "") or ".") for flag in names}
    moved = [path for flag, path in paths.items() if path != os.path.relpath(usual.get(flag) or ".")]
    if not moved:
        return name
    return f"{name}-{'-'.join(Path(moved[-1]).absolute().parts[-2:])}-{short_hash(*paths.values())}"


def short_hash(*parts):
    """Return six hexadecimal digits that follow some texts."""
    return hashlib.blake2b("\n".join(parts).encode(errors="surrogateescape"), digest_size=3).hexdigest()


def has(folder, *names):
    """Return True if any of these files is in a folder."""
    return any(os.path.exists(os.path.join(folder, name)) for name in names)


def read_record(path):
    """Read a run.json -> {"settings": .., "data": .., "starts": [..]}.

    Raises:
        InputError: it is missing, or no run.json.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the run.json of a run") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise InputError(f"{path}: not the run.json of a run; give one of a run, or remove it")
    return record


def recorded_settings(folder):
    """Return the settings of the run that is in a folder, or None.

    Raises:
        InputError: they cannot be read.
    """
    if has(folder, RECORD):
        return read_record(os.path.join(folder, RECORD))["settings"]
    if has(folder, LAST):
        return load_checkpoint(os.path.join(folder, LAST))["settings"]
    return result_of(folder)[1]


def result_of(folder):
    """Return a finished run's last epoch and its settings, from result.json; (-1, None) if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError), open(os.path.join(folder, RESULT), "rb") as file:
        result = json.load(file)
        return int(result["last"]["epoch"]), result.get("settings")
    return -1, None


def is_finished(settings):
    """Return True if the run in settings.ckpt_path has its result after settings.epochs epochs."""
    return result_of(settings.ckpt_path)[0] + 1 >= settings.epochs and not settings.overwrite


def check_settings(settings):
    """Raise InputError if the run in the folder cannot be resumed with these settings, and is not to be overwritten."""
    path = settings.ckpt_path
    if settings.overwrite or not has(path, LAST, RESULT):
        return
    for name, ours, theirs in differing(vars(settings), recorded_settings(path) or vars(settings)):
        raise InputError(
            f"--{name} {ours}: the run in {path} has {theirs}; use the same value, leave out --ckpt_path for a new "
            "folder, or start again with --overwrite"
        )
    if not has(path, LAST) and not is_finished(settings):
        raise InputError(
            f"--epochs {settings.epochs}: the run in {path} has ended and its {LAST} is missing, so it cannot be "
            "resumed; choose another --ckpt_path, or start again with --overwrite"
        )


@contextmanager
def opened(settings):
    """Create a run's folder, settings.ckpt_path or else `folder_of`, and keep other runs out while the block lasts.

    Raises:
        InputError: another run is writing there, the folder cannot be written, or the run in it has other settings.
    """
    with ExitStack() as stack:
        with first_process():
            if rank() == 0:
                settings.ckpt_path = settings.ckpt_path or folder_of(settings)
                stack.enter_context(exclusive(settings.ckpt_path, "--ckpt_path"))
                check_settings(settings)
        settings.ckpt_path = gather(settings.ckpt_path)[0]
        if not all(gather(os.path.isdir(settings.ckpt_path))):
            raise InputError(
                f"{settings.ckpt_path}: not there on all machines; --ckpt_path must be on a disk that they share"
            )
        yield


def check_data(settings, data):
    """Raise InputError if the run in the folder was trained on other clips than are listed now.

    Args:
        data: `Data.description`, before it is known which clips can be decoded.
    """
    path = os.path.join(settings.ckpt_path, RECORD)
    before = {} if settings.overwrite or not has(settings.ckpt_path, RECORD) else read_record(path).get("data", {})
    if before and before["train"] != data["train"]:
        raise InputError(
            f"{settings.ckpt_path}: trained on other clips, {before['train']['clips']} were listed then, "
            f"{data['train']['clips']} now; --overwrite trains again, another --ckpt_path keeps both"
        )


def write_record(settings, data):
    """Write run.json, or add a start to it if the run resumes; with --overwrite remove the earlier run's files.

    Args:
        data: `Data.description`.
    """
    if settings.overwrite:
        for name in OF_A_RUN:
            with suppress(FileNotFoundError):
                os.remove(os.path.join(settings.ckpt_path, name))
    path, before = os.path.join(settings.ckpt_path, RECORD), {}
    if has(settings.ckpt_path, LAST) and os.path.exists(path):
        before = read_record(path)
    starts = [*before.get("starts", ()), provenance()]
    write_json(path, {"settings": vars(settings), "data": before.get("data", data), "starts": starts})
