"""Evaluate checkpoints: accuracy, macro F1 and mean average precision, of the fused output and of each modality alone.

    python valid.py                                       # the newest best.pth below ckpt/
    python valid.py --ckpt_path ckpt/demo/last.pth        # one checkpoint, with the accuracy on every class
    python valid.py ckpt/demo ckpt/demo-joint             # side by side; of a run's folder, its best.pth
    python valid.py ckpt/demo --video clip.flv            # classify a video
    python valid.py ckpt/demo --linear_probe              # measure the features of each encoder

Model and data are rebuilt from the settings in the checkpoint. Flags override these settings. A checkpoint of the
authors' own code records no dataset, so name it: --dataset CREMAD.
"""

import os

import torch
from torch.utils.data import DataLoader

from analysis.probe import linear_probe
from analysis.tables import comparison, detail, measure, write_predictions
from data.video import read_video
from dataset import DATASETS
from dataset.loader import build_loader
from engine.checkpoint import load_model
from engine.device import choose_device, set_precision
from engine.evaluation import are_finite, class_names, predict
from engine.figures import confusion_figure, save_figure
from engine.settings import find_checkpoints, run_label, validation_parser
from utils.config import parse
from utils.errors import InputError, run_script
from utils.files import write_json

TOP_CLASSES, BAR = 5, 40  # number of classes printed for a video; length of the bar for probability 1, in characters


def parse_flags():
    """Return the flags that were typed, {name: value}.

    Raises:
        InputError: a flag is wrong or contradicts another flag.
    """
    _, typed = parse(validation_parser())
    typed["ckpt_path"] = find_checkpoints([*typed.pop("paths", ()), *typed.get("ckpt_path", ())])
    for name in ("video", "confusion", "predictions"):
        if name in typed and len(typed["ckpt_path"]) > 1:
            raise InputError(f"--{name}: takes one checkpoint; give --ckpt_path a single file")
    for name in ("linear_probe", "json", "confusion", "predictions"):
        if name in typed and "video" in typed:
            raise InputError(f"--{name}: needs a test set, --video has none; leave out one of the two flags")
    return typed


def validate(paths, typed):
    """Evaluate checkpoints on their test clips and print a table: one in detail, several side by side.

    Args:
        paths: checkpoints of main_dgl.py or of the authors' code.
        typed: the flags that were typed, {name: value}. Flags of data and device override the checkpoints' settings.

    Raises:
        InputError: a checkpoint or its data are missing, or do not fit each other.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: one process evaluates a checkpoint; start valid.py with python instead")
    loaded = [load_model(path, typed) for path in paths]  # a wrong path fails before any evaluation
    device = device_of(typed)
    results = []
    for path, (model, settings) in zip(paths, loaded, strict=True):
        set_precision(settings.deterministic)
        loader = build_loader(settings, "test", device)
        dataset = loader.dataset
        if settings.classes and settings.classes != list(dataset.classes):
            raise InputError(
                f"{path}: trained on other classes than {settings.dataset} has here; restore the class list "
                "of the training run"
            )
        print(f"{describe(path, settings)}\ntest: {dataset}", flush=True)
        predictions = checked_predictions(path, model, loader, device)
        probe = None
        if settings.linear_probe:
            probe = linear_probe(model, build_loader(settings, "train", device, training=False), loader, device)
        about = {
            "checkpoint": path,
            "run": run_label(vars(settings)),
            "epoch": settings.epoch,
            "dataset": settings.dataset,
        }
        about["clips"] = len(dataset)
        results.append({**about, **measure(predictions, dataset.classes), "linear_probe": probe})
    print(f"\n{detail(results[0]) if len(results) == 1 else comparison(results)}")
    if settings.json:
        write_json(settings.json, results[0] if len(results) == 1 else results)
    if settings.predictions:
        write_predictions(settings.predictions, dataset, predictions)
    if settings.confusion:
        names = class_names(dataset.classes, predictions["fused"].shape[1])
        save_figure(confusion_figure(predictions, names), settings.confusion)


def classify(video, path, typed):
    """Print the top classes of a video for each branch of the checkpoint at `path`.

    A video without audio is classified by its frames alone.

    Args:
        video: path of a file that FFmpeg reads.
        path, typed: as in `validate`.

    Raises:
        InputError: the checkpoint or the video cannot be used, or the video has no audio for an audio-only model.
    """
    model, settings = load_model(path, typed)
    device = device_of(typed)
    set_precision(settings.deterministic)
    item, has_audio = read_video(video, settings)
    branches = model.branches if len(model.modalities) > 1 else model.modalities
    if not has_audio:
        branches = [branch for branch in branches if branch == "visual"]
    if not branches:
        raise InputError(f"{video}: has no audio, and {path} is an audio-only model; use another video or checkpoint")
    predictions = checked_predictions(path, model, DataLoader([item]), device)
    names = class_names(settings.classes or DATASETS[settings.dataset].classes, model.n_classes)
    width = max(map(len, names))
    print(f"{video}: {describe(path, settings)}" + ("" if has_audio else "\nno audio, classified by its frames alone"))
    for branch in branches:
        print(f"\n{branch}")
        top = predictions[branch][0].topk(min(TOP_CLASSES, len(names)))
        for probability, label in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            print(f"  {names[label]:{width}}  {probability:.4f}  {'█' * round(BAR * probability)}".rstrip())


def device_of(typed):
    """Return the device that the flags name, or the best one of the machine.

    Raises:
        InputError: the flags name several GPUs.
    """
    gpu_ids = typed.get("gpu_ids", ())
    if len(gpu_ids) > 1:
        raise InputError(f"--gpu_ids {','.join(map(str, gpu_ids))}: a checkpoint is evaluated on one GPU; name one")
    return choose_device(typed.get("device", "auto"), gpu_ids)


def checked_predictions(path, model, loader, device):
    """Move a model to the device and return its predictions; `path` is its checkpoint, for the error message.

    Raises:
        InputError: a probability is not finite.
    """
    model.to(device, memory_format=torch.channels_last)
    predictions = predict(model, loader, device)
    if not are_finite(predictions):
        raise InputError(f"{path}: the model's probabilities are not finite; use the checkpoint of another run")
    return predictions


def describe(path, settings):
    """Return one line that names a checkpoint and its model."""
    epoch = "" if settings.epoch is None else f", epoch {settings.epoch}"
    return f"{path}{epoch}: {settings.dataset}, {settings.fusion_method} fusion, modality {settings.modality}"


def main():
    typed = parse_flags()
    if "video" in typed:
        classify(typed["video"], typed["ckpt_path"][0], typed)
    else:
        validate(typed["ckpt_path"], typed)


if __name__ == "__main__":
    run_script(main)
