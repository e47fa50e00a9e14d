"""What a run shows while it goes on, and what it leaves to read beside its checkpoints."""

import datetime
import json
import os
import statistics
import weakref

import torch

from methods import describe
from utils.files import write_csv, write_json, write_text
from utils.progress import progress_bar
from utils.results.evaluation import untrained_losses
from utils.results.folder import begin
from utils.results.settings import in_words, label
from utils.training import distributed
from utils.training.measurement import BRANCHES, LOSSES, named
from utils.training.run import best_of


class Journal:
    """The displays of a run of main_dgl.py: progress bar, a line per epoch, log.jsonl, pictures, TensorBoard.

    A context: TensorBoard's files are whole when it ends. Of several processes the first one alone shows and writes.

    Args:
        run: a Run, resumed if it is.
        data: what `folder.digests` says of its data.
    """

    def __init__(self, run, data):
        self.run = weakref.proxy(run)  # no circle: reader processes end with the last reference to the run
        self.args, self.bar, self.board = run.args, None, None
        if distributed.rank() > 0:
            return
        begin(run.args, data)
        self.write_log()
        left_out = [(split, *clip) for split, loader in run.loaders.items() for clip in loader.dataset.left_out()]
        write_csv(self.path("skipped.csv"), [("split", "clip", "reason"), *left_out])
        if os.path.exists(self.path("result.json")):
            os.remove(self.path("result.json"))
        if self.args.use_tensorboard:
            from utils.results.board import Board

            folder, into = self.path("tensorboard"), self.args.tensorboard_path
            if into:
                folder = os.path.join(into, os.path.basename(os.path.abspath(self.args.ckpt_path)))
            self.board = Board(folder, vars(self.args), run.log, self.done() if self.args.tensorboard_steps else None)

    def __enter__(self):
        steps, method = len(self.run.loader), label(*describe(vars(self.args)))
        print(f"training on {self.run.device}, {method}, {steps} steps an epoch, checkpoints in {self.args.ckpt_path}")
        if self.args.val_ratio and not self.done():  # before its first step: G-Blending asks what a run gained
            losses = untrained_losses(self.run)
            if distributed.rank() == 0:
                write_json(self.path("start.json"), losses)
        return self

    def __exit__(self, *_):
        if self.board:
            self.board.close()

    def path(self, name):
        return os.path.join(self.args.ckpt_path, name)

    def done(self):
        """Number of steps done, counted from the run's beginning."""
        progress = self.run.progress
        return progress["epoch"] * len(self.run.loader) + progress["step"]

    def watch(self, batches, first):
        """The batches of the epoch in hand from number `first` on, behind a progress bar."""
        disable, title = distributed.rank() > 0, f"epoch {self.run.progress['epoch']}"
        self.bar = progress_bar(batches, title, len(self.run.loader), leave=False, initial=first, disable=disable)
        return self.bar

    def step(self, measured, clips):
        """Show a step that is done, and counted.

        Args:
            measured: (3, 3), losses, right answers, gradient magnitudes.
            clips: size of the batch.
        """
        progress = self.run.progress
        if not self.bar.disable:
            seen = min(progress["step"] * self.args.batch_size, len(self.run.loader.dataset))
            self.bar.set_postfix_str(running(progress["totals"] / seen), refresh=False)
        if self.board:
            figures = named(measured / torch.tensor([[1], [clips], [1]]))
            figures = {name: value for name, value in figures.items() if value is not None}
            self.board.add_step(self.done() - 1, figures | {"learning_rate": self.run.schedule.get_last_lr()[0]})
            if progress["step"] == len(self.run.loader):
                self.board.flush()  # before the epoch is saved: a run that is killed then does not repeat its steps

    def epoch(self):
        """Write and show the last row of the log."""
        if distributed.rank() > 0:
            return
        self.write_log()
        print(summary(self.run.log, self.args.epochs), flush=True)
        if self.board:
            self.board.add_epoch(self.run.log[-1])

    def finish(self, result, predictions, classes):
        """Draw curves.png and confusion.png, write result.json, and print the test accuracies.

        Args:
            result: {"best": {"epoch": .., "fused": .., "audio": .., "visual": ..}, "last": .., ...}.
            predictions: of the best epoch on the test set, as `evaluate` returns them.
            classes: their names.
        """
        if distributed.rank() > 0:
            return
        from utils.results.figures import confusion_figures, curves_figure, save_figure

        name = os.path.basename(os.path.abspath(self.args.ckpt_path))
        title = f"{name}: {in_words(vars(self.args))}"
        confusion = confusion_figures(predictions, classes, title)
        save_figure(confusion, self.path("confusion.png"))
        save_figure(curves_figure(self.run.log, title), self.path("curves.png"))
        rows = {name: result[name] for name in ("best", "last")}
        for name, row in rows.items():
            print(f"test accuracy, {name} epoch {row['epoch']}:  {show(row, BRANCHES)}")
        if self.board:
            self.board.add_result(rows, confusion)
        write_json(self.path("result.json"), result)
        print(f"validate with: python valid.py --ckpt_path {self.run.best_path}")

    def write_log(self):
        write_text(self.path("log.jsonl"), "".join(json.dumps(row) + "\n" for row in self.run.log))


def running(means):
    """Mean losses and accuracies of an epoch so far, (3, 3), for the progress bar."""
    values = named(means)
    accuracies = "  ".join(f"{b} {values[f'train_{b}']:.3f}" for b in BRANCHES if values[f"train_{b}"] is not None)
    return f"loss {values['loss']:.3f}  {accuracies}"


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
