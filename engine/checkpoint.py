"""Checkpoints of a run: plain dicts with all that is needed to rebuild the model, and in last.pth to resume."""

import os

import torch

from engine.build import build_model
from engine.folder import LAST
from engine.settings import check_dataset_flags, complete, training_parser, validation_parser
from methods import resolve
from models.weights import first_line, load_checkpoint
from utils.config import OF_METHODS, PATHS, differing, parse_settings
from utils.errors import InputError, Interrupted
from utils.files import replacing
from utils.processes import first_process, rank, wait_for_all
from utils.seeds import derived_seed

BEST = "best.pth"

# What a checkpoint may say. It may come from a stranger, so files to write are not part of it.
OF_THE_DATA = {"dataset", "root", *PATHS, "fps", "num_frame", "image_size", "batch_size", "val_ratio", "random_seed"}
OF_THE_DATA |= {"test_share", "audio_seconds"}
OF_THE_MODEL = {"method", "modality", "modulation", "no_mgt", "no_ugt", *OF_METHODS}
OF_THE_MODEL |= {"fusion_method", "backbone", "alone", "deterministic"}


def save(path, model, settings, **state):
    """Write the model's weights, its settings (a plain dict) and further state to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written; an older checkpoint at `path` stays as it was.
    """
    try:
        with replacing(path) as file:
            torch.save({"model": model.state_dict(), "settings": settings, **state}, file)
    except RuntimeError as error:  # of torch's own writer, caused by the system's error or by a signal
        if isinstance(error.__context__, Interrupted):
            raise error.__context__ from None
        reason = getattr(error.__context__, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def save_epoch(settings, model, method, optimizer, scheduler, dataset, log):
    """Save a run at the end of an epoch: best.pth if this epoch is the best so far, and last.pth, which resumes.

    Process 0 writes; all return when the files are there.

    Args:
        dataset: of the training clips.
        log: a row for each epoch.
    """
    with first_process():
        if rank() == 0:
            about = {"epoch": log[-1]["epoch"], "classes": list(dataset.classes)}
            if best_of(log) is log[-1]:
                save(os.path.join(settings.ckpt_path, BEST), model, vars(settings), **about)
            state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "log": log}
            state |= {"method": method.state_dict(), "clips": hash_of_clips(dataset)}
            save(os.path.join(settings.ckpt_path, LAST), model, vars(settings), **about, **state)


def resume(settings, model, method, optimizer, scheduler, dataset):
    """Put everything into the state at the end of the last epoch in the run's folder; return the log, a list of rows.

    Without a run in the folder, or with --overwrite, everything stays as it is and the log is empty.

    Raises:
        InputError: last.pth is no checkpoint, or was made with other settings, which are named, or other clips.
    """
    path, log = os.path.join(settings.ckpt_path, LAST), []
    with first_process():  # of several processes one reports
        if os.path.exists(path) and not settings.overwrite:
            log = load_state(path, settings, model, method, optimizer, scheduler, dataset)
            print(f"resuming in epoch {len(log)}")
    return log


def load_state(path, settings, model, method, optimizer, scheduler, dataset):
    """Load last.pth into everything; arguments and errors as `resume`."""
    saved = load_checkpoint(path)
    if saved["authors"] or not {"optimizer", "scheduler", "log", "method"} <= saved.keys():
        raise InputError(f"{path}: no run to resume is in it; remove it, or choose another --ckpt_path")
    for name, ours, theirs in differing(vars(settings), saved["settings"]):
        raise InputError(f"--{name} {ours}: {path} was made with {theirs}; use the same value, or another --ckpt_path")
    try:
        model.load_state_dict(saved["model"])
        method.load_state_dict(saved["method"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        if not all(row["fused"] >= 0 and row["epoch"] == number for number, row in enumerate(saved["log"])):
            raise ValueError("its log makes no sense")
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: does not fit this run ({first_line(error)}); choose another --ckpt_path") from None
    if saved.get("clips") != hash_of_clips(dataset):
        raise InputError(
            f"{path}: trained on other clips, since some could be decoded only then or only now; restore them, or "
            "choose another --ckpt_path"
        )
    return saved["log"]


def load_best(settings, model):
    """Load best.pth of the run into the model, in every process, once process 0 has written it."""
    wait_for_all()
    model.load_state_dict(load_checkpoint(os.path.join(settings.ckpt_path, BEST))["model"])


def best_of(log):
    """Return the row of the best epoch, the first one if several are best."""
    return max(log, key=lambda row: row["fused"])


def hash_of_clips(dataset):
    """Return a number that follows the names of a dataset's clips: resumed on others, a run would go astray."""
    return derived_seed(*(clip.id for clip in dataset.clips))


def load_model(path, typed):
    """Rebuild the model in a checkpoint and the settings of its data: (AVClassifier on the CPU, Namespace).

    Args:
        path: of a checkpoint of this project or of the authors' code.
        typed: flags that override the checkpoint's settings, {name: value}.

    Raises:
        InputError: the checkpoint is missing or damaged, or does not fit the flags that were typed.
    """
    saved = load_checkpoint(path)
    if saved["authors"] and "dataset" not in typed:
        raise InputError(f"{path}: of the authors' format, which records no dataset; add --dataset NAME")
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
    """Return the settings of a checkpoint's model and data, overridden by the flags that were typed.

    Raises:
        InputError: the checkpoint's settings are not of a kind that could have been typed.
    """
    own, recorded = vars(validation_parser().parse_args(["--ckpt_path", path])), saved["settings"]
    overridden = {name: value for name, value in typed.items() if name in own}
    same_data = overridden.get("dataset", recorded.get("dataset")) == recorded.get("dataset")
    names = OF_THE_MODEL | OF_THE_DATA if same_data else OF_THE_MODEL
    names = names - set(PATHS) if "root" in overridden else names
    recorded = {name: value for name, value in recorded.items() if name in names}
    try:
        rebuilt = resolve(vars(parse_settings(training_parser(), recorded)))
    except InputError as error:
        raise InputError(f"{path}: its settings cannot be used: {error}") from None
    rebuilt = {name: value for name, value in rebuilt.items() if name in OF_THE_MODEL | OF_THE_DATA}
    settings = complete(own | rebuilt | overridden)
    check_dataset_flags(settings, overridden)
    settings.epoch, settings.classes = saved["epoch"], saved["classes"]
    return settings
