"""Weights in files: checkpoints of this project and of the authors' code, and state dicts."""

import os
import pickle
import warnings

import torch

from utils.errors import InputError
from utils.files import looked_in


def load_checkpoint(path):
    """Read a checkpoint of this project or of the authors' code on to the CPU, running no code from it.

    The authors' checkpoints record `fusion`, `modulation` and `alpha` in place of settings, keep their weights under
    `module.`, hold a `fusion_module.fc_auxi` that nothing uses, and say `film` for the bilinear form.

    Returns:
        {"model": state dict, "settings": dict, "authors": bool, "epoch": int or None, "classes": names in order, ...}
        with no classes if the checkpoint records none.

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
    """Read what torch.save has written to a file, on to the CPU, running no code from it.

    Raises:
        InputError: `path` is missing, or holds something else.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file{looked_in(path)}; give a checkpoint, which main_dgl.py --train writes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load warns about pickles that it then rejects
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        reason = "no checkpoint, or one that would run code; only weights and plain settings are loaded"
        raise InputError(f"{path}: {reason}; give best.pth of a run") from None
    except Exception as error:  # torch.load raises nearly anything on a file that is no checkpoint
        raise InputError(f"{path}: not a checkpoint ({first_line(error)}); give best.pth of a run") from None


def is_plain(settings):
    """Return True if settings are a dict of the kinds of values that flags have."""
    kinds = (str, int, float, bool, type(None))
    return isinstance(settings, dict) and all(
        isinstance(value, kinds) or isinstance(value, list) and all(isinstance(each, kinds) for each in value)
        for value in settings.values()
    )


def first_line(error):
    """Return the first line of an exception's message, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
