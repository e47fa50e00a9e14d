"""Evaluate checkpoints: accuracy, macro F1 and mean average precision of the fused, audio and visual branches.

    python valid.py                                            # the newest best.pth below ckpt/
    python valid.py --ckpt_path ckpt/cremad/best.pth           # this one, with the accuracy on every class
    python valid.py ckpt/cremad ckpt/joint/last.pth            # side by side; a run's folder stands for its best.pth
    python valid.py ckpt/cremad --video clip.flv               # what is in this clip?
    python valid.py ckpt/cremad --linear_probe                 # how good each encoder's features are

Model and data are rebuilt from the settings in the checkpoint; any other flag overrides them. A checkpoint of the
authors' own code records no dataset, so name it: --dataset CREMAD.
"""

import os
from functools import partial

from dataset import DATASETS
from utils import options
from utils.errors import InputError, run
from utils.results.settings import find_checkpoints, in_words, validation_parser


def parse_flags():
    """The flags that were typed, {name: value}.

    Raises:
        InputError: a flag is wrong, or does not go with another.
    """
    _, typed = options.parse(validation_parser())
    typed["ckpt_path"] = find_checkpoints([*typed.pop("paths", ()), *typed.get("ckpt_path", ())])
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
from utils.files import write_json
from utils.results.evaluation import class_names, evaluate
from utils.results.linear_probe import linear_probe
from utils.results.restore import load_model
from utils.results.tables import comparison, detail, measure, write_predictions
from utils.training.device import choose_device, set_precision
from utils.training.measurement import BRANCHES

TOP_CLASSES, BAR = 5, 40  # classes shown of a video, and characters of a bar for probability 1


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
        figures = {"checkpoint": path, "run": in_words(vars(args)), "epoch": args.epoch, "dataset": args.dataset}
        figures["clips"] = len(dataset)
        results.append({**figures, **measure(predictions, dataset.classes), "linear_probe": probe})
    print(f"\n{detail(results[0]) if len(results) == 1 else comparison(results)}")
    if args.json:
        write_json(args.json, results[0] if len(results) == 1 else results)
    if args.predictions:
        write_predictions(args.predictions, dataset, predictions)
    if args.confusion:
        from utils.results.figures import confusion_figures, save_figure  # matplotlib takes a second to import

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


def describe(path, args):
    """A checkpoint and the kind of its model, on one line."""
    epoch = "" if args.epoch is None else f", epoch {args.epoch}"
    return f"{path}{epoch}: {args.dataset}, {args.fusion_method} fusion, modality {args.modality}"


def main(typed=None):
    typed = typed or parse_flags()
    if "video" in typed:
        classify(typed["video"], typed["ckpt_path"][0], typed)
    else:
        validate(typed["ckpt_path"], typed)


if __name__ == "__main__":
    run(partial(main, typed))
