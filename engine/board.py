"""Write TensorBoard files: a run's values per epoch and per step, its settings, and its confusion matrices."""

import os
import threading

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from engine.meter import branches_of
from utils.config import changes_results
from utils.errors import InputError

SAME_NAME = {"learning_rate", "seconds", "gradient_norm", "clipped"}  # series named as in the log


def series_of(name, row):
    """Return the TensorBoard tag of a value in a row of the log, or None if it is not written.

    TensorBoard groups charts by the part of the tag before the slash.
    """
    first, _, rest = name.partition("_")
    if name in SAME_NAME:
        return name
    if first == "loss":
        return f"loss/{rest or 'fused'}"
    if first in ("train", "gradient", "suppression"):
        return f"{ {'train': 'training_accuracy'}.get(first, first) }/{rest}"
    return f"accuracy/{name}" if name in branches_of(row) else None


def report_thread(error):
    """Report an exception that ends a thread, except an OSError: the writer raises it again at its next call."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


class Board:
    """TensorBoard's files of one run.

    A resumed run rewrites the values per epoch from its log. Values per step are in a folder of their own; a resumed
    run replaces those after the step at which it resumes.

    Args:
        folder: folder of the files.
        settings: settings of the run, a plain dict.
        rows: rows of the log so far.
        first_step: number of steps since the start of the run; None to write no values per step.

    Raises:
        InputError: `folder` cannot be written to.
    """

    def __init__(self, folder, settings, rows, first_step=None):
        self.steps, self.step = None, first_step
        threading.excepthook = report_thread
        try:
            self.epochs = SummaryWriter(folder, purge_step=0)
            if first_step is not None:
                self.steps = SummaryWriter(os.path.join(folder, "steps"), purge_step=first_step)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}; choose another --tensorboard_path") from None
        self.settings = settings
        text = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
        self.epochs.add_text("settings", f"| flag | value |\n|---|---|\n{text}")
        for row in rows:
            self.add_epoch(row, ())

    def add_epoch(self, row, steps):
        """Write a row of the log, and the values of its steps if values per step are written."""
        for name, value in row.items():
            if tag := series_of(name, row):
                self.epochs.add_scalar(tag, value, row["epoch"])
        self.epochs.flush()
        for step in steps if self.steps else ():
            for name, value in (step | {"learning_rate": row["learning_rate"]}).items():
                if tag := series_of(name, step):
                    group, _, rest = tag.partition("/")
                    self.steps.add_scalar(f"{group}_by_step/{rest}".rstrip("/"), value, self.step)
            self.step += 1
        if self.steps:
            self.steps.flush()

    def add_result(self, result, figure):
        """Write the result of a finished run: accuracies with its hyperparameters, and a figure.

        Args:
            result: {"best": {"epoch": .., "fused": .., ...}, "last": ..}.
            figure: matplotlib Figure of the best epoch's confusion matrices.
        """
        metrics = {
            f"{name}/{branch}": value
            for name, row in result.items()
            for branch, value in row.items()
            if branch != "epoch"
        }
        settings = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self.settings.items()
            if changes_results(name)
        }
        for summary in hparams(settings, metrics):  # SummaryWriter.add_hparams would create a second run
            self.epochs.file_writer.add_summary(summary)
        for tag, value in metrics.items():
            self.epochs.add_scalar(tag, value, result[tag.partition("/")[0]]["epoch"])
        self.epochs.add_figure("confusion", figure, result["best"]["epoch"], close=False)

    def close(self):
        self.epochs.close()
        if self.steps:
            self.steps.close()
