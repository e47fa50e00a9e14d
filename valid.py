"""Evaluate a checkpoint: overall, audio and visual accuracy, and a table per class.

    python valid.py --ckpt_path ckpt/cremad/best.pth
    python valid.py --ckpt_path ckpt/cremad/best.pth --linear_probe        # how good each encoder's features are

Model and data are rebuilt from the settings in the checkpoint; any other flag overrides them. A checkpoint of the
authors' own code records no dataset, so name it: --dataset CREMAD.
"""

from functools import partial

from dataset import DATASETS
from utils import options
from utils.errors import InputError, run


def parse_flags():
    """The flags, as utils.options.parse: InputError where one is wrong."""
    return options.parse(options.validation_parser(tuple(DATASETS)))


if __name__ == "__main__":
    flags = run(parse_flags)  # as in main_dgl.py

import torch

from dataset.loader import build_loader
from models.basic_model import AVClassifier
from utils import checkpoint
from utils.device import choose_device
from utils.evaluation import BRANCHES, accuracy, evaluate
from utils.files import write_json
from utils.linear_probe import linear_probe

# What a checkpoint may say of the data. It may come from a stranger, so files to write are not among it.
OF_THE_DATA = {"dataset", "audio_path", "visual_path", "split_path", "fps", "num_frame", "image_size", "batch_size"}
OF_THE_DATA |= {"val_ratio"}


def validate(path, typed):
    """Evaluate the checkpoint at `path` and print its accuracies.

    Args:
        path: a checkpoint of main_dgl.py or of the authors' code.
        typed: the flags that were typed, {name: value}; those of data and device override the checkpoint's settings.

    Raises:
        InputError: the checkpoint or its data are missing or do not fit.
    """
    saved = checkpoint.load(path)
    if saved["authors"] and "dataset" not in typed:
        raise InputError(f"{path}: of the authors' format, which records no dataset; add --dataset NAME")
    args = rebuild_settings(path, saved, typed)
    model = build_model(args, saved["model"], path)
    device = choose_device(args.device, args.gpu_ids)
    loader = build_loader(args, "test", device)
    model.to(device, memory_format=torch.channels_last)
    accuracies, predictions = evaluate(model, loader, device)
    probe = None
    if args.linear_probe:
        probe = linear_probe(model, build_loader(args, "train", device, training=False), loader, device)
    report(path, saved, args, loader.dataset, accuracies, predictions, probe)
    if args.json:
        figures = {
            "checkpoint": path,
            "epoch": saved.get("epoch"),
            "dataset": args.dataset,
            "clips": len(loader.dataset),
        }
        write_json(args.json, {**figures, **accuracies, "linear_probe": probe})


def rebuild_settings(path, saved, typed):
    """The settings of the checkpoint's model and data, overridden by the flags that were typed -> Namespace.

    Raises:
        InputError: the checkpoint's settings are not of a kind that could have been typed.
    """
    parser = options.validation_parser(tuple(DATASETS))
    known = vars(parser.parse_args(["--ckpt_path", path]))
    overridden = {name: value for name, value in typed.items() if name in known}
    recorded = saved["settings"]
    if overridden.get("dataset", recorded.get("dataset")) != recorded.get("dataset"):
        recorded = {name: recorded.get(name) for name in ("fusion_method", "modality")}
    of_data = {name: value for name, value in recorded.items() if name in OF_THE_DATA}
    try:
        args = options.parse_settings(parser, of_data | {"ckpt_path": path})
    except InputError as error:
        raise InputError(f"{path}: its settings are of no use: {error}") from None
    for name, default in (("fusion_method", "concat"), ("modality", "full"), ("random_seed", 0)):
        setattr(args, name, recorded.get(name, default))
    vars(args).update(overridden)
    return args


def build_model(args, weights, path):
    """AVClassifier with the checkpoint's weights, loaded strictly.

    Raises:
        InputError: the weights are of another model.
    """
    try:
        model = AVClassifier(DATASETS[args.dataset].n_classes, args.fusion_method, args.modality)
        model.load_state_dict(weights)
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:
        reason = checkpoint.first_line(error) if isinstance(error, ValueError) else "its weights do not fit"
        raise InputError(
            f"{path}: not a checkpoint for {args.dataset} ({reason}); check --dataset and the file"
        ) from None
    return model


def report(path, saved, args, dataset, accuracies, predictions, probe=None):
    """Print overall accuracies, those of linear probes, and the per-class table; a dash for what the model lacks."""

    def cells(values):
        return "".join(f"{'-' if value is None else f'{value:.4f}':>9}" for value in values)

    epoch = "" if saved.get("epoch") is None else f", epoch {saved['epoch']}"
    print(f"{path}{epoch}: {args.dataset}, {args.fusion_method} fusion, modality {args.modality}")
    print(f"test: {dataset}\n")
    width = max(map(len, (*dataset.classes, "linear probe")))
    print(f"{'':{width}}{'clips':>7}" + "".join(f"{branch:>9}" for branch in BRANCHES))
    print(f"{'overall':{width}}{len(dataset):7d}" + cells(accuracies[branch] for branch in BRANCHES))
    if probe:
        print(f"{'linear probe':{width}}{len(dataset):7d}" + cells((None, probe["audio"], probe["visual"])))
    counts = torch.bincount(predictions["label"], minlength=len(dataset.classes)).tolist()
    for label, name in enumerate(dataset.classes):
        row = (accuracy(predictions, branch, of_class=label) for branch in BRANCHES)
        print(f"{name:{width}}{counts[label]:7d}" + cells(row))


def main(flags=None):
    _, typed = flags or parse_flags()
    validate(typed["ckpt_path"], typed)


if __name__ == "__main__":
    run(partial(main, flags))
