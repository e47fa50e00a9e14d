"""Evaluate checkpoints: accuracy, macro F1 and mean average precision of the fused, audio and visual branches.

    python valid.py --ckpt_path ckpt/cremad/best.pth                       # and the accuracy on every class
    python valid.py --ckpt_path ckpt/cremad/best.pth ckpt/joint/best.pth   # side by side
    python valid.py --ckpt_path ckpt/cremad/best.pth --video clip.flv      # what is in this clip?
    python valid.py --ckpt_path ckpt/cremad/best.pth --linear_probe        # how good each encoder's features are

Model and data are rebuilt from the settings in the checkpoint; any other flag overrides them. A checkpoint of the
authors' own code records no dataset, so name it: --dataset CREMAD.
"""

import os
from functools import partial

from dataset import DATASETS
from utils import options
from utils.errors import InputError, run


def parse_flags():
    """The flags that were typed, {name: value}.

    Raises:
        InputError: a flag is wrong, or does not go with another.
    """
    _, typed = options.parse(options.validation_parser(tuple(DATASETS)))
    for name in ("video", "confusion", "predictions"):
        if name in typed and len(typed["ckpt_path"]) > 1:
            raise InputError(f"--{name}: of one checkpoint; give --ckpt_path a single file")
    for name in ("linear_probe", "json", "confusion", "predictions"):
        if name in typed and "video" in typed:
            raise InputError(f"--{name}: of a test set; leave it out, or --video")
    return typed


if __name__ == "__main__":
    typed = run(parse_flags)  # as in main_dgl.py

import torch
from torch.utils.data import DataLoader

from dataset.loader import build_loader
from models.basic_model import AVClassifier
from utils import checkpoint
from utils.device import choose_device, set_precision
from utils.evaluation import BRANCHES, accuracy, class_names, evaluate, macro_f1, mean_average_precision
from utils.files import write_csv, write_json
from utils.linear_probe import linear_probe

# What a checkpoint may say of the data. It may come from a stranger, so files to write are not among it.
OF_THE_DATA = {"dataset", "audio_path", "visual_path", "split_path", "fps", "num_frame", "image_size", "batch_size"}
OF_THE_DATA |= {"val_ratio"}

TOP_CLASSES, BAR = 5, 40  # classes shown of a video, and characters of a bar for probability 1

# The figures of a table, by name: {branch: value} of each; None of one that was not asked for.
METRICS = {
    "accuracy": lambda figures: figures,
    "macro F1": lambda figures: figures["macro_f1"],
    "mAP": lambda figures: figures["mean_average_precision"],
    "linear probe": lambda figures: figures["linear_probe"],
}


def validate(paths, typed):
    """Evaluate checkpoints on their test clips and print a table: one in detail, several side by side.

    Args:
        paths: checkpoints of main_dgl.py or of the authors' code.
        typed: the flags that were typed, {name: value}; those of data and device override the checkpoints' settings.

    Raises:
        InputError: a checkpoint or its data are missing or do not fit.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: a checkpoint is evaluated by one process; start it with python")
    loaded = [load_model(path, typed) for path in paths]  # all of them before the first is evaluated
    device = device_of(typed)
    results = []
    for path, (model, args) in zip(paths, loaded, strict=True):
        set_precision(args.deterministic)
        loader = build_loader(args, "test", device)
        dataset = loader.dataset
        if args.classes and args.classes != list(dataset.classes):
            raise InputError(f"{path}: trained on other classes than {args.dataset} has here; restore its class list")
        print(f"{describe(path, args)}\ntest: {dataset}", flush=True)
        predictions = predict(path, model, loader, device)
        probe = None
        if args.linear_probe:
            probe = linear_probe(model, build_loader(args, "train", device, training=False), loader, device)
        figures = {"checkpoint": path, "epoch": args.epoch, "dataset": args.dataset, "clips": len(dataset)}
        results.append({**figures, **measure(predictions, dataset.classes), "linear_probe": probe})
    print(f"\n{detail(results[0]) if len(results) == 1 else comparison(results)}")
    if args.json:
        write_json(args.json, results[0] if len(results) == 1 else results)
    if args.predictions:
        write_predictions(args.predictions, dataset, predictions)
    if args.confusion:
        from utils.figures import confusion_figures, save_figure  # matplotlib takes a second to import

        names = class_names(dataset.classes, predictions["fused"].shape[1])
        save_figure(confusion_figures(predictions, names), args.confusion)


def classify(video, path, typed):
    """Print the top classes of a video by each branch of the checkpoint at `path`; of one without sound by picture.

    Args:
        video: path of a file that FFmpeg reads.
        path, typed: as `validate`.

    Raises:
        InputError: the checkpoint or the video are of no use, or the model hears alone and the video is silent.
    """
    from dataset.video import read_video  # and FFmpeg, which no other run needs

    model, args = load_model(path, typed)
    device = device_of(typed)
    set_precision(args.deterministic)
    item, has_sound = read_video(video, args)
    branches = BRANCHES if args.modality == "full" else (args.modality,)
    if not has_sound:
        branches = [branch for branch in branches if branch == "visual"]
    if not branches:
        raise InputError(f"{video}: no sound in it, and {path} goes by sound alone; give another of the two")
    predictions = predict(path, model, DataLoader([item]), device)
    names = class_names(args.classes or DATASETS[args.dataset].index.classes, DATASETS[args.dataset].n_classes)
    width = max(map(len, names))
    print(f"{video}: {describe(path, args)}" + ("" if has_sound else "\nno sound in it, classified by picture alone"))
    for branch in branches:
        print(f"\n{branch}")
        top = predictions[branch][0].topk(min(TOP_CLASSES, len(names)))
        for probability, label in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            print(f"  {names[label]:{width}}  {probability:.4f}  {'█' * round(BAR * probability)}".rstrip())


def device_of(typed):
    """The device that the flags name, or the machine's best; InputError if they name several."""
    gpu_ids = typed.get("gpu_ids", ())
    if len(gpu_ids) > 1:
        raise InputError(f"--gpu_ids {','.join(map(str, gpu_ids))}: a checkpoint is evaluated on one GPU; name one")
    return choose_device(typed.get("device", "auto"), gpu_ids)


def load_model(path, typed):
    """The model in a checkpoint and the settings of its data -> (AVClassifier on the CPU, Namespace).

    Raises:
        InputError: the checkpoint is missing, is none, or does not fit the flags that were typed.
    """
    saved = checkpoint.load(path)
    if saved["authors"] and "dataset" not in typed:
        raise InputError(f"{path}: of the authors' format, which records no dataset; add --dataset NAME")
    args = rebuild_settings(path, saved, typed)
    return build_model(args, saved["model"], path), args


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
    vars(args).update(overridden, epoch=saved["epoch"], classes=saved["classes"])
    args.deterministic = recorded.get("deterministic") is True
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


def predict(path, model, loader, device):
    """The predictions that `evaluate` returns, of the model of the checkpoint at `path`, put on the device.

    Raises:
        InputError: a probability is not a number.
    """
    model.to(device, memory_format=torch.channels_last)
    _, predictions = evaluate(model, loader, device)
    if not all(values.isfinite().all() for values in predictions.values()):
        raise InputError(f"{path}: its model's probabilities are not finite; give a checkpoint of another run")
    return predictions


def measure(predictions, classes):
    """The figures of predictions, as `evaluate` returns them, of labels with the names `classes`.

    Returns:
        {"fused": .., "audio": .., "visual": ..}, the accuracies, 0 to 1, None for a branch that the model lacks;
        "macro_f1" and "mean_average_precision": the same of these; "per_class": {name: {"clips": .., "fused": .., ..}}.
    """
    counts = torch.bincount(predictions["label"], minlength=len(classes)).tolist()
    return {
        **{branch: accuracy(predictions, branch) for branch in BRANCHES},
        "macro_f1": {branch: macro_f1(predictions, branch) for branch in BRANCHES},
        "mean_average_precision": {branch: mean_average_precision(predictions, branch) for branch in BRANCHES},
        "per_class": {
            name: {"clips": counts[label], **{b: accuracy(predictions, b, of_class=label) for b in BRANCHES}}
            for label, name in enumerate(classes)
        },
    }


def describe(path, args):
    """A checkpoint and the kind of its model, on one line."""
    epoch = "" if args.epoch is None else f", epoch {args.epoch}"
    return f"{path}{epoch}: {args.dataset}, {args.fusion_method} fusion, modality {args.modality}"


def cells(values):
    """A number per branch, in the order of BRANCHES, as columns of a table; a dash for one that is missing."""
    values = [values.get(branch) for branch in BRANCHES]
    return "".join(f"{'-' if value is None else f'{value:.4f}':>8}" for value in values)


def detail(figures):
    """The table of one checkpoint: its METRICS, then the accuracy on every class."""
    head = "".join(f"{branch:>8}" for branch in BRANCHES)
    rows = {name: (figures["clips"], metric(figures)) for name, metric in METRICS.items() if metric(figures)}
    classes = {name: (values["clips"], values) for name, values in figures["per_class"].items()}
    width = max(map(len, (*rows, *classes, "accuracy on")))
    lines = [f"{'':{width}}{'clips':>7}{head}"]
    lines += [f"{name:{width}}{clips:7d}{cells(values)}" for name, (clips, values) in rows.items()]
    lines += ["", "accuracy on"]
    lines += [f"{name:{width}}{clips:7d}{cells(values)}" for name, (clips, values) in classes.items()]
    return "\n".join(lines)


def comparison(results):
    """The table of several checkpoints: a row each, the METRICS of the three branches side by side."""
    metrics = {name: metric for name, metric in METRICS.items() if metric(results[0])}
    width = max(len(figures["checkpoint"]) for figures in results)
    lines = [" " * width + "".join(f"{name:>24}" for name in metrics)]
    lines += [" " * width + "".join(f"{branch:>8}" for branch in BRANCHES) * len(metrics)]
    for figures in results:
        lines += [f"{figures['checkpoint']:{width}}" + "".join(cells(metric(figures)) for metric in metrics.values())]
    return "\n".join(lines)


def write_predictions(path, dataset, predictions):
    """Write a row per clip: its class, and per branch the predicted class, its probability and the true class's."""
    branches = [branch for branch in BRANCHES if branch in predictions]
    head = ("{}", "{} probability", "{} probability of true")
    columns = [[clip.id for clip in dataset.clips], [dataset.classes[label] for label in predictions["label"]]]
    for branch in branches:
        probability, predicted = predictions[branch].max(dim=1)
        names = class_names(dataset.classes, predictions[branch].shape[1])
        true = predictions[branch].gather(1, predictions["label"].unsqueeze(1)).squeeze(1)
        columns.append([names[label] for label in predicted])
        columns += [[f"{value:.6f}" for value in values.tolist()] for values in (probability, true)]
    header = ["clip", "true", *(text.format(branch) for branch in branches for text in head)]
    write_csv(path, [header, *zip(*columns, strict=True)])


def main(typed=None):
    typed = typed or parse_flags()
    if "video" in typed:
        classify(typed["video"], typed["ckpt_path"][0], typed)
    else:
        validate(typed["ckpt_path"], typed)


if __name__ == "__main__":
    run(partial(main, typed))
