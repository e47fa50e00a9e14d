"""Checkpoints: plain dicts with all that is needed to rebuild model and data."""

import hashlib
import os
import pickle
import warnings

import torch

from utils.errors import InputError
from utils.files import looked_in, replacing
from utils.options import differing
from utils.training.seeds import derived_seed


def save(path, model, settings, **state):
    """Write the model's weights, its settings (a plain dict) and further state to `path`, whole or not at all.

    Raises:
        InputError: the file cannot be written; an older checkpoint at `path` is left as it was.
    """
    try:
        with replacing(path) as file:
            torch.save({"model": model.state_dict(), "settings": settings, **state}, file)
    except RuntimeError as error:  # of torch's own writer, on top of the system's
        reason = getattr(error.__context__, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def resume(run, as_of_today):
    """Put a run's model, method, optimiser and schedule into the state saved at its last.pth and return the checkpoint.

    Args:
        run: a Run; changed in place. Its settings must be the checkpoint's, FREE_SETTINGS aside.
        as_of_today: a function that gives an older run's settings the form of today's.

    Raises:
        InputError: it is no checkpoint of main_dgl.py, or was made with other settings, which are named.
    """
    path, settings = run.last_path, vars(run.args)
    saved = load(path)
    if saved["authors"] or not {"optimizer", "scheduler", "progress", "log"} <= saved.keys():
        raise InputError(f"{path}: no run to resume is in it; remove it, or choose another --ckpt_path")
    for name, ours, theirs in differing(settings, as_of_today(saved["settings"])):
        raise InputError(
            f"--{name} {ours}: {path} was made with {theirs}; give the same again, or choose another --ckpt_path"
        )
    try:
        run.model.load_state_dict(saved["model"])
        run.method.load_state_dict(saved.get("method", {}))
        run.optimizer.load_state_dict(saved["optimizer"])
        run.schedule.load_state_dict(saved["scheduler"])
        progress, log = saved["progress"], saved["log"]
        usable = progress["epoch"] >= 0 and progress["step"] >= 0 and progress["totals"].shape == (3, 3)
        if not usable or not all(row["fused"] >= 0 for row in log):
            raise ValueError("its progress makes no sense")
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: does not fit this run ({first_line(error)}); choose another --ckpt_path") from None
    return saved


def load(path):
    """Read a checkpoint of ours or of the authors' code on to the CPU, running no code from it.

    The authors' checkpoints record `fusion`, `modulation` and `alpha` in place of settings, keep their weights under
    `module.`, hold a `fusion_module.fc_auxi` that nothing uses, and say `film` for the bilinear form.

    Returns:
        {"model": state dict, "settings": dict, "authors": bool, "epoch": int or None, "classes": names in order, ...}
        with no classes where the checkpoint records none.

    Raises:
        InputError: `path` is missing or no checkpoint.
    """
    checkpoint = read(path)
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{path}: not a checkpoint of this project (no model in it); give best.pth of a run")
    authors = "settings" not in checkpoint
    classes, epoch = checkpoint.setdefault("classes", []), checkpoint.setdefault("epoch", None)
    for usable, reason in (
        (all(isinstance(name, str) for name in weights), "its weights have no names"),
        (is_plain(checkpoint.get("settings", {})), "no settings in it"),
        (isinstance(classes, list) and all(isinstance(name, str) for name in classes), "its classes are no names"),
        (isinstance(epoch, (int, type(None))), "its epoch is no number"),
    ):
        if not usable:
            raise InputError(f"{path}: not a checkpoint of this project ({reason}); give best.pth of a run")
    if authors:
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
        weights = {name: value for name, value in weights.items() if not name.startswith("fusion_module.fc_auxi")}
        fusion = checkpoint.get("fusion", "concat")
        settings = {"fusion_method": "bilinear" if fusion == "film" else fusion, "modality": "full"}
        settings |= {name: checkpoint[name] for name in ("modulation", "alpha") if name in checkpoint}
        checkpoint |= {"model": weights, "settings": settings}
    return checkpoint | {"authors": authors}


def read(path):
    """What torch.save has put into a file, on to the CPU, running no code from it.

    Raises:
        InputError: `path` is missing, or holds something else.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file{looked_in(path)}; give a checkpoint, which main_dgl.py --train writes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load muses about pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "no checkpoint, or one that would run code; only weights and plain settings are loaded"
        raise InputError(f"{path}: {reason}; give best.pth of a run") from None
    except Exception as error:  # torch.load raises nearly anything on a file that is no checkpoint
        raise InputError(f"{path}: not a checkpoint ({first_line(error)}); give best.pth of a run") from None


def digest(tensors):
    """A number that tells apart what is in some tensors, the same on every machine."""
    return derived_seed(*(hashlib.blake2b(tensor.cpu().numpy().tobytes()).hexdigest() for tensor in tensors))


def is_plain(settings):
    """Whether settings are a dict of the kinds of values that flags have."""
    kinds = (str, int, float, bool, type(None))
    return isinstance(settings, dict) and all(
        isinstance(value, kinds) or isinstance(value, list) and all(isinstance(each, kinds) for each in value)
        for value in settings.values()
    )


def first_line(error):
    """The first line of an exception's message, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
