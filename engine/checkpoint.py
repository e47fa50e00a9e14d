"""Save and load the checkpoints of a run.

A checkpoint is a plain dict with the weights and the settings to rebuild the model. last.pth also has the state to
resume the run.
"""

import os

import torch

from engine.build import build_model
from engine.folder import LAST
from engine.settings import check_dataset_flags, complete, training_parser, validation_parser
from methods import resolve
from models.weights import first_line, load_checkpoint
from utils.config import METHOD_FLAGS, PATHS, differing, parse_settings
from utils.errors import InputError, Interrupted
from utils.files import replace_file
from utils.processes import first_process, rank, wait_for_all
from utils.seeds import derived_seed

BEST = "best.pth"

# Settings that are read from a checkpoint. It may come from a stranger, so paths of files to write are not among them.
DATA_SETTINGS = {"dataset", "root", *PATHS, "fps", "num_frame", "image_size", "batch_size", "val_ratio", "random_seed"}
DATA_SETTINGS |= {"test_share", "audio_seconds"}
MODEL_SETTINGS = {"method", "modality", "modulation", "no_mgt", "no_ugt", *METHOD_FLAGS}
MODEL_SETTINGS |= {"fusion_method", "backbone", "alone", "deterministic"}


def save(path, model, settings, **state):
    """Write the model's weights, its settings (a plain dict) and further state to `path`, completely or not at all.

    Raises:
        InputError: the file cannot be written; an older checkpoint at `path` stays unchanged.
    """
    try:
        with replace_file(path) as file:
            torch.save({"model": model.state_dict(), "settings": settings, **state}, file)
    except RuntimeError as error:  # torch's writer raises it on an error of the system or a signal
        if isinstance(error.__context__, Interrupted):
            raise error.__context__ from None
        reason = getattr(error.__context__, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def save_epoch(settings, model, method, optimizer, scheduler, dataset, log):
    """Save a run at the end of an epoch: last.pth to resume it, and best.pth if this epoch is the best so far.

    Process 0 writes; the other processes return after the files are written.

    Args:
        dataset: dataset of the training clips.
        log: rows of the log, one per epoch.
    """
    with first_process():
        if rank() == 0:
            state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "log": log}
            state |= {"method": method.state_dict(), "clips": hash_of_clips(dataset)}
            save(os.path.join(settings.ckpt_path, LAST), model, vars(settings), **about(dataset, log), **state)
            save_best(settings, model, dataset, log)


def save_best(settings, model, dataset, log):
    """Save best.pth if the last epoch of the log is the best one."""
    if best_of(log) is log[-1]:
        save(os.path.join(settings.ckpt_path, BEST), model, vars(settings), **about(dataset, log))


def about(dataset, log):
    """Return what a checkpoint records of its epoch: the epoch's number, and the names of the classes."""
    return {"epoch": log[-1]["epoch"], "classes": list(dataset.classes)}


def resume(settings, model, method, optimizer, scheduler, dataset):
    """Load the run's last epoch into model, method, optimizer and scheduler; return the log, a list of rows.

    If the folder has no run, or with --overwrite, nothing is loaded and the log is empty.

    Raises:
        InputError: last.pth is not a checkpoint, or was written with other settings or other clips.
    """
    path, log = os.path.join(settings.ckpt_path, LAST), []
    with first_process():  # only one process reports an error
        if os.path.exists(path) and not settings.overwrite:
            log = load_state(path, settings, model, method, optimizer, scheduler, dataset)
            if rank() == 0:
                save_best(settings, model, dataset, log)  # the run may have ended between last.pth and best.pth
            print(f"resuming in epoch {len(log)}")
    return log


def load_state(path, settings, model, method, optimizer, scheduler, dataset):
    """Load last.pth as `resume`, with the same arguments and errors, and return its log."""
    saved = load_checkpoint(path)
    if saved["authors"] or not {"optimizer", "scheduler", "log", "method"} <= saved.keys():
        raise InputError(f"{path}: contains no run to resume; remove the file, or choose another --ckpt_path")
    for name, ours, theirs in differing(vars(settings), saved["settings"]):
        raise InputError(
            f"--{name} {ours}: {path} was trained with {theirs}; use the same value, or another --ckpt_path"
        )
    try:
        model.load_state_dict(saved["model"])
        method.load_state_dict(saved["method"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        if not all(row["fused"] >= 0 and row["epoch"] == number for number, row in enumerate(saved["log"])):
            raise ValueError("its log has wrong epochs or accuracies")
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: does not fit this run ({first_line(error)}); choose another --ckpt_path") from None
    if saved.get("clips") != hash_of_clips(dataset):
        raise InputError(
            f"{path}: trained on other clips, because some could be decoded then and not now, or now and not then; "
            "restore them, or choose another --ckpt_path"
        )
    return saved["log"]


def load_best(settings, model):
    """Load best.pth of the run into the model, in every process, after process 0 has written it."""
    wait_for_all()
    model.load_state_dict(load_checkpoint(os.path.join(settings.ckpt_path, BEST))["model"])


def best_of(log):
    """Return the row of the best epoch, the first one if several are equally good."""
    return max(log, key=lambda row: row["fused"])


def hash_of_clips(dataset):
    """Return a hash of the names of a dataset's clips, so that a run is not resumed on other clips."""
    return derived_seed(*(clip.id for clip in dataset.clips))


def load_model(path, typed):
    """Rebuild a checkpoint's model and the settings of its data; return (AVClassifier on the CPU, Namespace).

    Args:
        path: path of a checkpoint of this project or of the authors' code.
        typed: flags that override the checkpoint's settings, {name: value}.

    Raises:
        InputError: the checkpoint is missing or damaged, or does not fit the typed flags.
    """
    saved = load_checkpoint(path)
    if saved["authors"] and "dataset" not in typed:
        raise InputError(f"{path}: saved by the authors' code, which records no dataset; add --dataset NAME")
    settings = rebuild_settings(path, saved, typed)
    try:
        model, _ = build_model(settings)
        model.load_state_dict(saved["model"])
    except (RuntimeError, ValueError, AttributeError, TypeError):
        raise InputError(
            f"{path}: not a checkpoint for {settings.dataset} (its weights do not fit); check --dataset and the file"
        ) from None
    return model, settings


def rebuild_settings(path, saved, typed):
    """Return the settings of a checkpoint's model and data, overridden by the typed flags.

    Raises:
        InputError: a setting of the checkpoint has a value that its flag does not accept.
    """
    own, recorded = vars(validation_parser().parse_args(["--ckpt_path", path])), saved["settings"]
    overridden = {name: value for name, value in typed.items() if name in own}
    same_data = overridden.get("dataset", recorded.get("dataset")) == recorded.get("dataset")
    names = MODEL_SETTINGS | DATA_SETTINGS if same_data else MODEL_SETTINGS
    names = names - set(PATHS) if "root" in overridden else names
    recorded = {name: value for name, value in recorded.items() if name in names}
    try:
        rebuilt = resolve(vars(parse_settings(training_parser(), recorded)))
    except InputError as error:
        raise InputError(f"{path}: its settings cannot be used: {error}") from None
    rebuilt = {name: value for name, value in rebuilt.items() if name in MODEL_SETTINGS | DATA_SETTINGS}
    settings = complete(own | rebuilt | overridden)
    check_dataset_flags(settings, overridden)
    settings.epoch, settings.classes = saved["epoch"], saved["classes"]
    return settings
