"""Print the progress of a run, and write its log, result and figures next to its checkpoints."""

import datetime
import json
import os
import shlex
import statistics
from pathlib import Path

from engine.board import Board
from engine.checkpoint import best_of
from engine.evaluation import untrained_losses
from engine.figures import confusion_figure, curves_figure, save_figure
from engine.folder import write_record
from engine.meter import branches_of, loss_name
from engine.settings import label, run_label
from methods import describe
from utils.errors import warn_once
from utils.files import write_csv, write_json, write_text
from utils.processes import rank


class RunLog:
    """The log of a run: run.json, log.jsonl, a printed line per epoch, TensorBoard, result.json and figures.

    Only process 0 writes and prints.

    Args:
        settings: settings of the run, Namespace.
        data: Data of the run.
        rows: rows of the log so far, one per epoch.
    """

    def __init__(self, settings, data, rows):
        self.settings, self.rows, self.board, self.first = settings, rows, None, rank() == 0
        if not self.first:
            return
        write_record(settings, data.description)
        self.write_rows()
        left_out = [(split, *clip) for split, loader in data.loaders.items() for clip in loader.dataset.left_out()]
        write_csv(self.path("skipped.csv"), [("split", "clip", "reason"), *left_out])
        if os.path.exists(self.path("result.json")):
            os.remove(self.path("result.json"))
        if settings.use_tensorboard:
            folder, into = self.path("tensorboard"), settings.tensorboard_path
            if into:
                path = Path(settings.ckpt_path)
                below = path.parts[1:] if path.parts[:1] == ("ckpt",) else ()  # with the dataset's folder
                folder = os.path.join(into, *(below or [path.absolute().name]))
            steps = len(rows) * len(data.train) if settings.tensorboard_steps else None
            self.board = Board(folder, vars(settings), rows, steps)

    def path(self, name):
        """Return the path of a file in the run's folder."""
        return os.path.join(self.settings.ckpt_path, name)

    def start(self, model, data, device):
        """Print device and method; with held-out clips, write the losses of the initial model for G-Blending."""
        method, steps = label(*describe(vars(self.settings))), len(data.train)
        print(f"training on {device}, {method}, {steps} step(s) per epoch, checkpoints in {self.settings.ckpt_path}")
        if data.chosen_on == "val" and not self.rows:
            losses = untrained_losses(model, data, self.settings.batch_size, device)
            if self.first:
                write_json(self.path("start.json"), losses)

    def add(self, row, steps):
        """Add the row of an epoch to the log, and write and print it.

        Args:
            row: {name: value}.
            steps: values of the epoch's steps, [{name: value}], for TensorBoard.
        """
        self.rows.append(row)
        if not self.first:
            return
        self.write_rows()
        print(summary(self.rows, self.settings.epochs), flush=True)
        self.show_on_board("add_epoch", row, steps)

    def show_on_board(self, method, *arguments):
        """Call a method of the Board, if there is one. If it cannot write, the run continues without TensorBoard."""
        if not self.board:
            return
        try:
            getattr(self.board, method)(*arguments)
        except OSError as error:
            self.board = None
            warn_once(f"TensorBoard: {error.strerror}; the run continues without it; free space before the next run")

    def write_rows(self):
        write_text(self.path("log.jsonl"), "".join(json.dumps(row) + "\n" for row in self.rows))

    def finish(self, result, predictions, classes):
        """Write result.json, draw confusion.png and curves.png, and print the test accuracies.

        Args:
            result: {"best": {"epoch": .., "fused": .., ...}, "last": .., ...}.
            predictions: predictions of the best epoch on the test set, as `evaluate` returns them.
            classes: names of the classes.
        """
        if not self.first:
            return
        write_json(self.path("result.json"), result)
        title = f"{os.path.basename(os.path.abspath(self.settings.ckpt_path))}: {run_label(vars(self.settings))}"
        confusion = confusion_figure(predictions, classes, title)
        save_figure(confusion, self.path("confusion.png"))
        save_figure(curves_figure(self.rows, title), self.path("curves.png"))
        rows = {name: result[name] for name in ("best", "last")}
        self.show_on_board("add_result", rows, confusion)
        self.show_on_board("close")
        for name, row in rows.items():
            print(f"test accuracy, {name} epoch {row['epoch']}:  {format_values(row, [*row][1:])}")
        print(f"validate with: python valid.py --ckpt_path {shlex.quote(self.path('best.pth'))}")


def format_values(row, names):
    """Return values by name on one line, such as 'fused 0.9833  audio 0.9067'."""
    return "  ".join(f"{name} {row[name]:.4f}" for name in names)


def summary(rows, epochs):
    """Return the last row of the log as a line for the terminal, with an estimate of the remaining time."""
    row, best, branches = rows[-1], best_of(rows), branches_of(rows[-1])
    left = statistics.mean(row["seconds"] for row in rows[-5:]) * (epochs - len(rows))
    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}  {format_values(row, map(loss_name, branches))}"
        f"  clipped {row['clipped']:4.0%}  {row['split']} accuracy: {format_values(row, branches)}"
        f"  best {best['fused']:.4f}  {row['seconds']:4.0f} s  left {datetime.timedelta(seconds=round(left))!s:>8}"
    )
