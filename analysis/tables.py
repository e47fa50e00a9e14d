"""Compute the metrics of a model's predictions, and the tables that valid.py prints and writes."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score

from engine.evaluation import accuracy, class_names, predicted_branches
from utils.files import write_csv

# The metrics in tables, by name. Each function returns {branch: value}, or None if the metric was not requested.
METRICS = {
    "accuracy": lambda values: {branch: values[branch] for branch in values["macro_f1"]},
    "macro F1": lambda values: values["macro_f1"],
    "mAP": lambda values: values["mean_average_precision"],
    "linear probe": lambda values: values["linear_probe"],
}


def macro_f1(predictions, branch):
    """Return the F1 score of the top class, averaged over the classes that have a clip.

    A class that is never predicted counts as 0. The values are those of scikit-learn's f1_score.
    """
    label, predicted = predictions["label"].numpy(), predictions[branch].argmax(dim=1).numpy()
    return float(f1_score(label, predicted, labels=np.unique(label), average="macro", zero_division=0))


def mean_average_precision(predictions, branch):
    """Return the average precision of each class against the rest, averaged over the classes that have a clip.

    The values are those of scikit-learn's average_precision_score: a step at every distinct probability, without
    interpolation.
    """
    label, probability = predictions["label"].numpy(), predictions[branch].numpy()
    return float(np.mean([average_precision_score(label == c, probability[:, c]) for c in np.unique(label)]))


def measure(predictions, classes):
    """Return the metrics of predictions.

    Args:
        predictions: as `predict` returns them.
        classes: names of the labels.

    Returns:
        {<branch>: accuracy, "macro_f1": {branch: value}, "mean_average_precision": {branch: value}, "per_class":
        {name: {"clips": number of clips, <branch>: accuracy}}}; all values are 0 to 1.
    """
    counts, branches = (
        torch.bincount(predictions["label"], minlength=len(classes)).tolist(),
        predicted_branches(predictions),
    )
    return {
        **{branch: accuracy(predictions, branch) for branch in branches},
        "macro_f1": {branch: macro_f1(predictions, branch) for branch in branches},
        "mean_average_precision": {branch: mean_average_precision(predictions, branch) for branch in branches},
        "per_class": {
            name: {"clips": counts[label], **{b: accuracy(predictions, b, of_class=label) for b in branches}}
            for label, name in enumerate(classes)
        },
    }


def cells(values, branches):
    """Return the value of each branch as columns of a table; a dash for a missing value."""
    values = [values.get(branch) for branch in branches]
    return "".join(f"{'-' if value is None else f'{value:.4f}':>8}" for value in values)


def detail(values):
    """Return the table of one checkpoint: its METRICS, then the accuracy for every class."""
    branches = list(values["macro_f1"])
    rows = {name: (values["clips"], metric(values)) for name, metric in METRICS.items() if metric(values)}
    classes = {name: (of_class["clips"], of_class) for name, of_class in values["per_class"].items()}
    width = max(map(len, (*rows, *classes, "accuracy on")))
    lines = [f"{'':{width}}{'clips':>7}" + "".join(f"{branch:>8}" for branch in branches)]
    lines += [f"{name:{width}}{clips:7d}{cells(row, branches)}" for name, (clips, row) in rows.items()]
    lines += ["", "accuracy on"]
    lines += [f"{name:{width}}{clips:7d}{cells(row, branches)}" for name, (clips, row) in classes.items()]
    return "\n".join(lines)


def comparison(results):
    """Return the table of several checkpoints: a row with path and method for each, a column per metric and branch."""
    branches = list(dict.fromkeys(branch for values in results for branch in values["macro_f1"]))
    metrics = {name: metric for name, metric in METRICS.items() if metric(results[0])}
    names = [f"{values['checkpoint']}  {values['run']}" for values in results]
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{name:>{8 * len(branches)}}" for name in metrics)]
    lines += [" " * width + "".join(f"{branch:>8}" for branch in branches) * len(metrics)]
    for name, values in zip(names, results, strict=True):
        lines += [f"{name:{width}}" + "".join(cells(metric(values), branches) for metric in metrics.values())]
    return "\n".join(lines)


def write_predictions(path, dataset, predictions):
    """Write a CSV file with a row per clip: true class, and for each branch the predicted class and probabilities.

    The probabilities are those of the predicted class and of the true class.

    Args:
        path: path of the file.
        dataset: dataset of the clips.
        predictions: as `predict` returns them.
    """
    branches = predicted_branches(predictions)
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
