"""Draw the figures of a run: confusion matrices and curves."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine.checkpoint import best_of
from engine.evaluation import predicted_branches
from engine.meter import branches_of, loss_name
from utils.files import replace_file

MAX_COUNTED = 12  # with up to this many classes, every cell shows its number of clips
MAX_NAMED = 50  # with up to this many classes, the axes name every class, otherwise every k-th one
NAME_LENGTH = 24


def confusion_figure(predictions, classes, title=""):
    """Draw the confusion matrices of a model's branches side by side, with the accuracy of each.

    Args:
        predictions: {"label": (M,), <branch>: probabilities (M, C)}, as `evaluate` returns them.
        classes: the names of all C classes.
        title: title of the figure, such as the name of the run.

    Returns:
        matplotlib Figure.
    """
    label, panels = np.asarray(predictions["label"]), {}
    for branch in predicted_branches(predictions):
        predicted = np.asarray(predictions[branch]).argmax(axis=1)
        panels[f"{branch}, accuracy {(predicted == label).mean():.4f}"] = label, predicted
    figure = draw_panels(panels, classes)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def draw_panels(panels, classes):
    """Draw confusion matrices side by side and return the Figure.

    Args:
        panels: {title: (label, predicted)}, class numbers (M,) each.
        classes: the names of all C classes.
    """
    size = len(classes)
    side = min(max(2.8, 0.2 * size), 8)  # inches
    every = -(-size // MAX_NAMED)
    names = [name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…" for name in classes[::every]]
    margin = 0.6 + 0.08 * max(map(len, names))
    figure = Figure(figsize=(margin + len(panels) * (side + 0.3) + 0.6, side + margin + 0.7), layout="compressed")
    axes_of = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    selected = "" if every == 1 else f" ({len(names)} of {size} named)"
    for axes, (title, (label, predicted)) in zip(axes_of, panels.items(), strict=True):
        numbers = np.asarray(label) * size + np.asarray(predicted)
        counts = np.bincount(numbers, minlength=size**2).reshape(size, size)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title)
        axes.set_xlabel(f"predicted class{selected}")
        axes.set_xticks(range(0, size, every), names, rotation=90)
        axes.set_yticks(range(0, size, every), names)
        axes.tick_params(labelsize=10 if size <= MAX_COUNTED else 8)
        if size <= MAX_COUNTED:
            for row, column in np.argwhere(counts):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=9)
    axes_of[0].set_ylabel(f"true class{selected}")
    figure.colorbar(image, ax=axes_of, label="share of the true class's clips", fraction=0.05, pad=0.01)
    return figure


TRAINING_NOTE = (
    "Training accuracies are means over the steps of an epoch, on augmented clips. Accuracies on other clips are those "
    "at the end of the epoch, and can be higher."
)


def curves_figure(log, title=""):
    """Draw losses and accuracies per epoch, and mark the best epoch and the decays of the learning rate.

    Args:
        log: rows of log.jsonl.
        title: title of the figure, such as the name of the run.

    Returns:
        matplotlib Figure.
    """
    epochs = [row["epoch"] for row in log]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for number, branch in enumerate(branches_of(log[-1])):
        for axes, name, style, marker, label in (
            (losses, loss_name(branch), "-", "o", branch),
            (accuracies, branch, "-", "o", f"{branch}, {log[-1]['split']}"),
            (accuracies, f"train_{branch}", ":", "x", f"{branch}, training"),
        ):
            markers = {"marker": marker, "markersize": 4} if len(log) <= 30 else {}  # a single epoch has no line
            axes.plot(epochs, [row[name] for row in log], style, color=f"C{number}", label=label, **markers)
    losses.set_ylabel("training loss (cross-entropy)")
    accuracies.set_ylabel("accuracy")
    accuracies.set_ylim(-0.02, 1.02)
    best = best_of(log)
    accuracies.plot(best["epoch"], best["fused"], "*", color="black", fillstyle="none", markersize=16, zorder=3)
    accuracies.set_title(f"★ best epoch, {best['epoch']}", loc="right", fontsize=10)
    rates = [row["learning_rate"] for row in log]
    for axes in (losses, accuracies):
        drops = [epoch for epoch, before, rate in zip(epochs[1:], rates, rates[1:], strict=False) if rate != before]
        for drop in drops:
            axes.axvline(drop - 0.5, color="grey", linewidth=1, linestyle="--")
        if drops and axes is losses:
            axes.plot([], [], color="grey", linewidth=1, linestyle="--", label="learning rate drops")
        axes.set_xlabel("epoch")
        axes.set_xlim(-0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4 if axes is losses else 3, frameon=False)
    figure.suptitle(title)
    figure.supxlabel(TRAINING_NOTE, fontsize=8, color="grey")
    return figure


def save_figure(figure, path):
    """Write a figure to `path` as PNG, completely or not at all, as `replace_file` does."""
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
