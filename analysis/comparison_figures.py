"""Draw the figures of a comparison: accuracy per epoch, accuracy against alpha, and differences with intervals."""

import statistics
from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure

from analysis.runs import branches_of, mean_and_deviation
from engine.figures import save_figure
from engine.settings import label

MAX_BANDS = 5  # with more methods, curves have no bands, because these would overlap


def new_figure(branches):
    """Return a figure with a panel per branch, side by side: (figure, {branch: axes})."""
    figure = Figure(figsize=(4 * len(branches), 4), layout="constrained")
    panels = figure.subplots(1, len(branches), sharey=True, squeeze=False)[0]
    for branch, axes in zip(branches, panels, strict=True):
        axes.set_title(branch)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    return figure, dict(zip(branches, panels, strict=True))


def draw(axes, x, values, band=True, **style):
    """Draw a line of means with a band of one standard deviation; values[k] are the accuracies of all seeds at x[k]."""
    means, deviations = zip(*(mean_and_deviation(seeds) for seeds in values), strict=True)
    (line,) = axes.plot(x, means, marker="o", markersize=3, **style)
    if not band:
        return
    low, high = (
        [mean + sign * (deviation or 0) for mean, deviation in zip(means, deviations, strict=True)] for sign in (-1, 1)
    )
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def save_with_legend(figure, panels, path):
    """Write the figure to `path` with one legend below its panels."""
    entries = {}
    for axes in panels.values():
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    columns = max(1, min(5, 130 // (8 + max(map(len, entries)))))  # as many as fit into the width of the figure
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns)
    save_figure(figure, path)


def plot_curves(runs, path):
    """Draw the accuracy per epoch: a panel per branch, a line per method with a band of one standard deviation."""
    figure, panels = new_figure(branches_of(runs))
    for number, (key, entries) in enumerate(runs.items()):
        epochs = range(min(len(entry["log"]) for entry in entries))
        for branch, axes in panels.items():
            values = [[entry["log"][epoch].get(branch) for entry in entries] for epoch in epochs]
            if None not in values[0]:
                draw(axes, epochs, values, len(runs) <= MAX_BANDS, label=label(*key), color=f"C{number}")
    for axes in panels.values():
        axes.set_xlabel("epoch")
        axes.set_xlim(left=-0.3)
        axes.set_ylim(-0.02, 1.02)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_with_legend(figure, panels, path)


def plot_alphas(runs, path):
    """Draw the best epoch's accuracy against alpha for methods with several alphas; without any, remove the file."""
    path.unlink(missing_ok=True)
    methods = defaultdict(dict)
    for (method, alpha), entries in runs.items():
        if alpha is not None:
            methods[method][alpha] = entries
    methods = {method: alphas for method, alphas in methods.items() if len(alphas) > 1}
    if not methods:
        return
    figure, panels = new_figure(branches_of(runs))
    for method, alphas in methods.items():
        for branch, axes in panels.items():
            values = [[entry["best"].get(branch) for entry in entries] for entries in alphas.values()]
            if None not in sum(values, []):
                draw(axes, list(alphas), values, label=method)
            axes.set_xlabel("alpha")
    save_with_legend(figure, panels, path)


def axis_limits(found):
    """Return the limits (left, right) of a panel that shows the Differences `found`, as shares (0.01 is one point).

    The limits include all intervals, but each limit is at most three times as far from 0 as the median interval goes.
    Otherwise one method that fails would squeeze all others.
    """
    limit = 3 * statistics.median(max(-each.low, each.high, 0.001) for each in found)
    return max(min(each.low for each in found), -limit), min(max(each.high for each in found), limit)


def draw_difference(axes, place, found, left, right):
    """Draw the point and the interval of the Difference `found` in row `place` of a panel.

    The point is filled if its interval excludes 0. An arrowhead at the edge means that the interval continues beyond
    it. A number next to the arrowhead is the value of a point beyond the edge.

    Args:
        axes: axes of the panel.
        place: number of the row.
        found: a Difference.
        left, right: limits of the panel, in points.
    """
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    colour = "grey" if not found.clear else "C2" if mean > 0 else "C3"
    axes.plot(np.clip([low, high], left, right), [place, place], color=colour, linewidth=2)
    if low < left:
        axes.plot(left, place, "<", color=colour, zorder=3)
    if high > right:
        axes.plot(right, place, ">", color=colour, zorder=3)
    if left <= mean <= right:
        face = colour if found.clear else "white"
        axes.plot(mean, place, "o", color=colour, markerfacecolor=face, zorder=3)
    else:
        edge, inward, side = (left, 8, "left") if mean < left else (right, -8, "right")
        placement = {"xytext": (inward, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(f"{mean:+.1f}", (edge, place), color=colour, **placement)


def plot_differences(differences, reference, path):
    """Draw the differences with their intervals: a panel per branch, a row per method; without any, remove the file."""
    path.unlink(missing_ok=True)
    drawn = {key: found for key, found in differences.items() if found}
    if not drawn:
        return
    figure, panels = new_figure(list(dict.fromkeys(branch for found in drawn.values() for branch in found)))
    figure.set_figheight(1.6 + 0.35 * len(drawn))
    for branch, axes in panels.items():
        axes.axvline(0, color="black", linewidth=1)
        places = {place: found[branch] for place, found in enumerate(drawn.values()) if branch in found}
        edges = [100 * value for value in axis_limits(places.values())] if places else []
        for place, found in places.items():
            draw_difference(axes, place, found, *edges)
        axes.set_xlabel(f"points, minus {label(*reference)}")
        axes.set_ylim(len(drawn) - 0.5, -0.5)
    first, *_ = panels.values()
    first.set_ylabel("")
    first.set_yticks(range(len(drawn)), [label(*key) for key in drawn])
    save_figure(figure, path)
