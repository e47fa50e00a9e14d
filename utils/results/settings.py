"""The settings of runs: flags, with what the tables of datasets, models and methods offer; older runs' settings."""

import os
from pathlib import Path

from dataset import DATASETS
from methods import METHODS, describe, flags, resolve
from models import BACKBONES, FUSION_MODULES, MODALITIES
from utils import options
from utils.errors import InputError


def training_parser():
    """The parser of main_dgl.py."""
    tables = (DATASETS, FUSION_MODULES, MODALITIES, BACKBONES, METHODS)
    return options.training_parser(*map(tuple, tables), flags())


def validation_parser():
    """The parser of valid.py."""
    return options.validation_parser(tuple(DATASETS))


def find_checkpoints(paths):
    """The files that paths of checkpoints or of runs' folders stand for; of none, the newest best.pth below ckpt/.

    Raises:
        InputError: none is given, and there is none.
    """
    if not paths:
        found = sorted(Path("ckpt").rglob("best.pth"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError(
                "ckpt: no best.pth below it; train with main_dgl.py --train, or name a run with --ckpt_path"
            )
        *others, newest = map(str, found)
        print(f"{newest}: the newest of {len(found)} run(s) below ckpt/{', beside ' * bool(others)}{', '.join(others)}")
        return [newest]
    return [os.path.join(path, "best.pth") if os.path.isdir(path) else path for path in paths]


def as_of_today(recorded):
    """Settings that a run recorded, as a run of today would record them: what they lack counts as its default.

    Raises:
        InputError: they name no method, or two.
    """
    return resolve(vars(training_parser().parse_args([])) | recorded)


def in_words(settings):
    """A run's method, the value that was tuned, and its seed: 'DGL, alpha 4, seed 0'."""
    return f"{label(*describe(settings))}, seed {settings['random_seed']}"


def label(method, value):
    """A method, as `describe` tells it of a run's settings, in a legend or a title."""
    return method if value is None else f"{method}, alpha {value:g}"
