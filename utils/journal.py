"""What a run shows while it goes on, and what it leaves to read beside its checkpoints."""

import datetime
import json
import os
import statistics
import sys

import torch
from tqdm import tqdm

from utils import distributed
from utils.evaluation import BRANCHES
from utils.files import write_csv, write_json, write_text
from utils.measurement import MODULES

# What is measured of a step, (3, 3), and its names in the log: losses, right answers, gradient magnitudes.
LOSSES = ("loss", "loss_a", "loss_v")
HITS = tuple(f"train_{branch}" for branch in BRANCHES)
GRADIENTS = tuple(f"gradient_{module}" for module in MODULES)


class Journal:
    """The displays of a run of main_dgl.py: progress bar, a line per epoch, log.jsonl, pictures, TensorBoard.

    A context: TensorBoard's files are whole when it ends. Of several processes the first one alone shows and writes.

    Args:
        args: the run's settings.
        loaders: by split, the one of the training clips under "train".
        log: the rows so far.
        progress: as `train_epoch` keeps it.
    """

    def __init__(self, args, loaders, log, progress):
        self.args, self.loader, self.bar, self.board = args, loaders["train"], None, None
        if distributed.rank() > 0:
            return
        self.write_log(log)
        left_out = [(split, *clip) for split, loader in loaders.items() for clip in loader.dataset.left_out()]
        write_csv(self.path("skipped.csv"), [("split", "clip", "reason"), *left_out])
        if os.path.exists(self.path("result.json")):
            os.remove(self.path("result.json"))
        if args.use_tensorboard:
            from utils.board import Board

            folder = self.path("tensorboard")
            if args.tensorboard_path:
                folder = os.path.join(args.tensorboard_path, os.path.basename(os.path.abspath(args.ckpt_path)))
            done = progress["epoch"] * len(self.loader) + progress["step"]
            self.board = Board(folder, vars(args), log, done if args.tensorboard_steps else None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.board:
            self.board.close()

    def path(self, name):
        return os.path.join(self.args.ckpt_path, name)

    def watch(self, batches, epoch, first, learning_rate):
        """The batches of an epoch from number `first` on, behind a progress bar."""
        self.learning_rate = learning_rate
        disable = distributed.rank() > 0 or not sys.stderr.isatty()
        self.bar = tqdm(batches, f"epoch {epoch}", len(self.loader), leave=False, initial=first, disable=disable)
        return self.bar

    def step(self, progress, measured, clips):
        """Show a step that is done.

        Args:
            progress: as `train_epoch` keeps it, this step counted in.
            measured: (3, 3), losses, right answers, gradient magnitudes.
            clips: size of the batch.
        """
        if not self.bar.disable:
            seen = min(progress["step"] * self.args.batch_size, len(self.loader.dataset))
            self.bar.set_postfix_str(running(progress["totals"] / seen), refresh=False)
        if self.board:
            number = progress["epoch"] * len(self.loader) + progress["step"] - 1
            figures = named(measured / torch.tensor([[1], [clips], [1]]))
            figures = {name: value for name, value in figures.items() if value is not None}
            self.board.add_step(number, figures | {"learning_rate": self.learning_rate})
            if progress["step"] == len(self.loader):
                self.board.flush()  # before the epoch is saved: a run that is killed then does not repeat its steps

    def epoch(self, log):
        """Write and show the last row of the log."""
        if distributed.rank() > 0:
            return
        self.write_log(log)
        print(summary(log, self.args.epochs), flush=True)
        if self.board:
            self.board.add_epoch(log[-1])

    def finish(self, log, result, predictions, classes):
        """Draw curves.png and confusion.png, write result.json, and print the test accuracies.

        Args:
            log: all rows.
            result: {"best": {"epoch": .., "fused": .., "audio": .., "visual": ..}, "last": .., ...}.
            predictions: of the best epoch on the test set, as `evaluate` returns them.
            classes: their names.
        """
        if distributed.rank() > 0:
            return
        from utils.figures import confusion_figures, curves_figure, save_figure

        confusion = confusion_figures(predictions, classes)
        save_figure(confusion, self.path("confusion.png"))
        save_figure(curves_figure(log), self.path("curves.png"))
        rows = {name: result[name] for name in ("best", "last")}
        for name, row in rows.items():
            print(f"test accuracy, {name} epoch {row['epoch']}:  {show(row, BRANCHES)}")
        if self.board:
            self.board.add_result(rows, confusion)
        write_json(self.path("result.json"), result)

    def write_log(self, log):
        write_text(self.path("log.jsonl"), "".join(json.dumps(row) + "\n" for row in log))


def named(measured):
    """Figures (3, 3) by their names in the log; None for NaN, which the model lacks or nobody measured."""
    values = (None if value != value else value for value in measured.flatten().tolist())
    return dict(zip((*LOSSES, *HITS, *GRADIENTS), values, strict=True))


def running(means):
    """Mean losses and accuracies of an epoch so far, (3, 3), for the progress bar."""
    values = named(means)
    accuracies = "  ".join(f"{b} {values[f'train_{b}']:.3f}" for b in BRANCHES if values[f"train_{b}"] is not None)
    return f"loss {values['loss']:.3f}  {accuracies}"


def best_of(log):
    """The row of the best epoch, the first one where several are best."""
    return max(log, key=lambda row: row["fused"])


def show(values, names):
    """Values by name on one line, such as 'fused 0.9833  audio 0.9067', a dash for None."""
    return "  ".join(f"{name} {'  -   ' if values[name] is None else f'{values[name]:.4f}'}" for name in names)


def summary(log, epochs):
    """The last row of the log as a line for the terminal, with the time that the epochs to come should take."""
    row, best = log[-1], best_of(log)
    left = statistics.mean(row["seconds"] for row in log[-5:]) * (epochs - len(log))
    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}  {show(row, LOSSES)}  {row['split']} accuracy: {show(row, BRANCHES)}"
        f"  best {best['fused']:.4f}  {row['seconds']:4.0f} s  left {datetime.timedelta(seconds=round(left))!s:>8}"
    )
