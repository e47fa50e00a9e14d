"""Figures of a model's predictions, and the tables of them that valid.py prints and writes."""

import torch

from utils.files import write_csv
from utils.results.evaluation import accuracy, class_names, macro_f1, mean_average_precision
from utils.training.measurement import BRANCHES

# The figures of a table, by name: {branch: value} of each; None of one that was not asked for.
METRICS = {
    "accuracy": lambda figures: figures,
    "macro F1": lambda figures: figures["macro_f1"],
    "mAP": lambda figures: figures["mean_average_precision"],
    "linear probe": lambda figures: figures["linear_probe"],
}


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
    """The table of several checkpoints: a row each, which names its rule, METRICS of the branches side by side."""
    metrics = {name: metric for name, metric in METRICS.items() if metric(results[0])}
    names = [f"{figures['checkpoint']}  {figures['run']}" for figures in results]
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{name:>24}" for name in metrics)]
    lines += [" " * width + "".join(f"{branch:>8}" for branch in BRANCHES) * len(metrics)]
    for name, figures in zip(names, results, strict=True):
        lines += [f"{name:{width}}" + "".join(cells(metric(figures)) for metric in metrics.values())]
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
