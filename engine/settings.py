"""Get the settings of a run from the command line and from run.json, and find checkpoints."""

import os
import sys
from argparse import Namespace
from pathlib import Path

from dataset import DATASETS
from engine.folder import read_record, recorded_settings
from methods import METHODS, check_flags, describe, resolve
from models.backbone import BACKBONES
from models.basic_model import MODALITIES
from models.fusion_modules import FUSION_MODULES
from utils import config
from utils.errors import InputError, warn_once

CHOICES = {
    "dataset": DATASETS,
    "fusion_method": FUSION_MODULES,
    "modality": MODALITIES,
    "backbone": BACKBONES,
    "method": METHODS,
}
NOT_REUSED = {
    "train",
    "resume",
    "overwrite",
    "config",
    "ckpt_path",
    "tensorboard_path",
    "gradient_report",
    "modality",
}


def training_parser():
    """Return the parser of main_dgl.py."""
    about = "Train with Disentangled Gradient Learning or a baseline; without --train, evaluate best.pth."
    return config.build_parser("main", about, CHOICES)


def validation_parser():
    """Return the parser of valid.py."""
    about = "Evaluate checkpoints. Model and data are rebuilt from the checkpoint; flags override its settings."
    parser = config.build_parser("valid", about, CHOICES)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="same as --ckpt_path (default: the newest best.pth in ckpt/ or its subfolders)",
    )
    for action in parser._actions:
        if action.dest == "ckpt_path":
            action.nargs = "+"
    return parser


def parse_training(argv=None):
    """Parse the flags of main_dgl.py.

    Returns:
        (settings, typed): the complete Namespace, and {name: value} of the typed flags.

    Raises:
        InputError: a flag is wrong or contradicts another flag.
    """
    parser = training_parser()
    settings, typed = config.parse(parser, argv)
    settings = complete(vars(with_recorded(settings, typed, parser, argv)))
    check_dataset_flags(settings, typed)
    check_flags(settings, typed)
    for name in ("tensorboard_path", "tensorboard_steps"):
        if name in typed and not settings.use_tensorboard:
            print(f"warning: --{name}: no effect without --use_tensorboard", file=sys.stderr)
    return settings, typed


def complete(settings):
    """Resolve settings {name: value}, add the dataset's paths and number of frames, and return a Namespace."""
    settings = resolve(settings)
    if settings.get("val_ratio") == 0:
        settings["val_ratio"] = None
    return Namespace(**DATASETS[settings["dataset"]].complete(settings))


def check_dataset_flags(settings, typed):
    """Check that the typed flags and the settings fit the dataset.

    Raises:
        InputError: a flag has no effect with the dataset, or a value does not fit it.
    """
    name, source = settings.dataset, DATASETS[settings.dataset]
    for flag in typed:
        if flag in source.without:
            raise InputError(f"--{flag}: no effect with --dataset {name}; leave it out")
    for flag, value in (("method", settings.modality), ("freeze", getattr(settings, "freeze", None))):
        if value not in (None, "full", "both", *source.inputs):
            raise InputError(
                f"--{flag} {value}: {name} has the modalities {', '.join(source.inputs)}; use one of these"
            )
    if (settings.backbone == "mlp") != (source.backbone == "mlp"):
        raise InputError(f"--backbone {settings.backbone}: does not fit {name}; use {source.backbone}")


def with_recorded(settings, typed, parser, argv):
    """Return the settings of a command line, with flags that were not typed taken from the run of --config or --resume.

    Raises:
        InputError: there is no such run, or one of its settings has a value that its flag does not accept.
    """
    if settings.resume and not settings.ckpt_path:
        raise InputError(
            "--resume: needs --ckpt_path, the folder of the run; add it, or repeat the command that started the run"
        )
    path = settings.config or (settings.ckpt_path if settings.resume else None)
    recorded = None
    if path:
        recorded = read_record(path)["settings"] if settings.config else recorded_settings(path)
    if settings.resume and settings.train and not recorded:
        warn_once(f"--resume: no run in {path}, starting a new one")
    if not recorded:
        return settings
    recorded = {name: value for name, value in resolve(recorded).items() if name not in NOT_REUSED}
    if typed.get("dataset", recorded["dataset"]) != recorded["dataset"]:  # another dataset has other folders and frames
        recorded = {name: value for name, value in recorded.items() if name not in {*config.PATHS, "root", "num_frame"}}
    if "root" in typed:
        recorded = {name: value for name, value in recorded.items() if name not in config.PATHS}
    if any(typed.get(name) not in (None, "full", "Normal") for name in ("modality", "modulation", "no_mgt", "no_ugt")):
        del recorded["method"]  # these flags name another method
    try:
        again = vars(config.parse_settings(training_parser(), recorded))
    except InputError as error:
        raise InputError(f"{path}: its settings cannot be used: {error}") from None
    parser.set_defaults(**{name: again[name] for name in recorded if name in again})
    return parser.parse_args(argv)


def find_checkpoints(paths):
    """Return the checkpoints that paths name; a run's folder names its best.pth.

    Without paths, return the newest best.pth below ckpt/.

    Raises:
        InputError: there are no paths, and no best.pth below ckpt/.
    """
    if not paths:
        found = sorted(Path("ckpt").rglob("best.pth"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError(
                "ckpt: no best.pth below it; train with main_dgl.py --train, or name a run with --ckpt_path"
            )
        *others, newest = map(str, found)
        print(
            f"{newest}: the newest of {len(found)} run(s) below ckpt/{'; others: ' * bool(others)}{', '.join(others)}"
        )
        return [newest]
    return [os.path.join(path, "best.pth") if os.path.isdir(path) else path for path in paths]


def run_label(settings):
    """Return a run's method, its tuned value and its seed as text: 'DGL, alpha 4, seed 0'."""
    return f"{label(*describe(settings))}, seed {settings['random_seed']}"


def label(method, value):
    """Return the text for a method and its tuned value, which `describe` returns, in legends and titles."""
    return method if value is None else f"{method}, alpha {value:g}"
