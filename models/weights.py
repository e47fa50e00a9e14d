"""Read weights from files: checkpoints of this project and of the authors' code, and state dicts."""

import codecs
import pickle
import warnings

import numpy as np
import torch

from utils.errors import InputError
from utils.files import folder_hint

# objects that numpy numbers in a checkpoint consist of, with their names in numpy 1 and 2; none of them runs code
SCALAR = np.float64(0).__reduce__()[0]
NUMBERS = [np.dtype, codecs.encode, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd")]
NUMBERS += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def load_checkpoint(path):
    """Read a checkpoint of this project or of the authors' code onto the CPU, without running code from it.

    The authors' checkpoints have `fusion`, `modulation` and `alpha` in place of settings. Their weights have the prefix
    `module.` and include an unused `fusion_module.fc_auxi`. Their `film` is the bilinear form.

    Returns:
        {"model": state dict, "settings": dict, "authors": bool, "epoch": int or None, "classes": names in order, ...};
        "classes" is empty if the checkpoint does not record them.

    Raises:
        InputError: `path` is missing or is not a checkpoint.
    """
    checkpoint = read(path)
    if is_state_dict(checkpoint):
        checkpoint = {"model": dict(checkpoint)}
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not is_state_dict(weights):
        raise InputError(f"{path}: not a checkpoint of this project (it contains no model); use best.pth of a run")
    authors = "settings" not in checkpoint
    classes, epoch = checkpoint.setdefault("classes", []), checkpoint.setdefault("epoch", None)
    for usable, reason in (
        (all(isinstance(name, str) for name in weights), "its weights have no names"),
        (is_plain(checkpoint.get("settings", {})), "it contains no valid settings"),
        (isinstance(classes, list) and all(isinstance(name, str) for name in classes), "its classes are not names"),
        (isinstance(epoch, (int, np.integer, type(None))), "its epoch is not a number"),
    ):
        if not usable:
            raise InputError(f"{path}: not a checkpoint of this project ({reason}); use best.pth of a run")
    weights = checkpoint["model"] = without_prefix(weights)
    if authors:
        weights = {name: value for name, value in weights.items() if not name.startswith("fusion_module.fc_auxi")}
        fusion = checkpoint.get("fusion", "concat")
        settings = {"fusion_method": "bilinear" if fusion == "film" else fusion, "modality": "full"}
        settings |= {name: checkpoint[name] for name in ("modulation", "alpha") if name in checkpoint}
        checkpoint |= {"model": weights, "settings": settings}
    return checkpoint | {"authors": authors}


def read(path):
    """Read a file written by torch.save onto the CPU, without running code from it.

    Raises:
        InputError: `path` is missing, or contains something else.
    """
    try:
        with open(path, "rb"), warnings.catch_warnings(), torch.serialization.safe_globals(NUMBERS):
            warnings.simplefilter("ignore")  # torch.load warns about pickles that it then rejects
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file{folder_hint(path)}; use a checkpoint that main_dgl.py --train has written"
        ) from None
    except PermissionError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable, or give another checkpoint") from None
    except pickle.UnpicklingError:
        reason = "no checkpoint, or one that would run code; only weights and plain settings are loaded"
        raise InputError(f"{path}: {reason}; use best.pth of a run") from None
    except Exception as error:  # torch.load can raise any exception on a file that is not a checkpoint
        raise InputError(f"{path}: not a checkpoint ({first_line(error)}); use best.pth of a run") from None


def is_state_dict(weights):
    """Return True if weights are a nonempty dict of tensors."""
    return (
        isinstance(weights, dict) and bool(weights) and all(isinstance(each, torch.Tensor) for each in weights.values())
    )


def without_prefix(weights):
    """Return weights without the prefix `module.`, which DataParallel and DistributedDataParallel add."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def is_plain(settings):
    """Return True if settings are a dict whose values have the types of flags."""
    kinds = (str, int, float, bool, type(None))
    return isinstance(settings, dict) and all(
        isinstance(value, kinds) or isinstance(value, list) and all(isinstance(each, kinds) for each in value)
        for value in settings.values()
    )


def first_line(error):
    """Return the first line of an exception's message, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
