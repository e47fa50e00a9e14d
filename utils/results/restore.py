"""The model in a checkpoint, with the settings of its data: rebuilt from what it records, overridden by flags."""

from argparse import Namespace

from dataset import DATASETS
from methods import build, flags, resolve
from utils import options
from utils.errors import InputError
from utils.results.settings import training_parser, validation_parser
from utils.training import checkpoint

# What a checkpoint may say. It may come from a stranger, so files to write are not among it.
OF_THE_DATA = {"dataset", "audio_path", "visual_path", "split_path", "fps", "num_frame", "image_size", "batch_size"}
OF_THE_DATA |= {"val_ratio", "random_seed"}
OF_THE_MODEL = {"method", "modality", "modulation", "no_mgt", "no_ugt", *(flag.name for flag in flags())}
OF_THE_MODEL |= {"fusion_method", "backbone", "deterministic"}


def load_model(path, typed):
    """The model in a checkpoint and the settings of its data -> (AVClassifier on the CPU, Namespace).

    Raises:
        InputError: the checkpoint is missing, is none, or does not fit the flags that were typed.
    """
    saved = checkpoint.load(path)
    if saved["authors"] and "dataset" not in typed:
        raise InputError(f"{path}: of the authors' format, which records no dataset; add --dataset NAME")
    args = rebuild_settings(path, saved, typed)
    try:
        model, _ = build(args, DATASETS[args.dataset].n_classes)
        model.load_state_dict(saved["model"])
    except (RuntimeError, ValueError, AttributeError, TypeError):
        raise InputError(
            f"{path}: not a checkpoint for {args.dataset} (its weights do not fit); check --dataset and the file"
        ) from None
    return model, args


def rebuild_settings(path, saved, typed):
    """The settings of the checkpoint's model and data, overridden by the flags that were typed -> Namespace.

    Raises:
        InputError: the checkpoint's settings are not of a kind that could have been typed.
    """
    defaults, recorded = vars(validation_parser().parse_args(["--ckpt_path", path])), saved["settings"]
    overridden = {name: value for name, value in typed.items() if name in defaults}
    same_data = overridden.get("dataset", recorded.get("dataset")) == recorded.get("dataset")
    names = OF_THE_MODEL | OF_THE_DATA if same_data else OF_THE_MODEL
    recorded = {name: value for name, value in recorded.items() if name in names}
    try:
        rebuilt = resolve(vars(options.parse_settings(training_parser(), recorded)))
    except InputError as error:
        raise InputError(f"{path}: its settings are of no use: {error}") from None
    rebuilt = {name: value for name, value in rebuilt.items() if name in OF_THE_MODEL | OF_THE_DATA}
    return Namespace(**defaults | rebuilt | overridden, epoch=saved["epoch"], classes=saved["classes"])
