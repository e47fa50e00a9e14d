"""TensorBoard: a run's series by epoch and by step, its settings, and its confusion matrices."""

import os

from utils.errors import InputError
from utils.options import FREE_SETTINGS
from utils.training.measurement import BRANCHES, LOSSES, MODULES

# What a row of the log holds -> the name of its series. TensorBoard puts those with the same first part together.
SERIES = {"learning_rate": "learning_rate", "seconds": "seconds"}
SERIES |= dict(zip(LOSSES, (f"loss/{branch}" for branch in BRANCHES), strict=True))
SERIES |= {branch: f"accuracy/{branch}" for branch in BRANCHES}
SERIES |= {f"train_{branch}": f"training_accuracy/{branch}" for branch in BRANCHES}
SERIES |= {f"gradient_{module}": f"gradient/{module}" for module in MODULES}


class Board:
    """TensorBoard's files of one run.

    A resumed run replaces what was written before: the series by epoch by those of the log, and of those by step, which
    have a folder of their own, what lies behind the step that it goes on with.

    Args:
        folder: where to write.
        settings: of the run, a plain dict.
        log: its rows so far.
        first_step: number of steps done, counted from the run's beginning; None to write no series by step.

    Raises:
        InputError: `folder` cannot be written to.
    """

    def __init__(self, folder, settings, log, first_step=None):
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only on demand

        try:
            self.epochs = SummaryWriter(folder, purge_step=0)
            self.steps = None
            if first_step is not None:
                self.steps = SummaryWriter(os.path.join(folder, "steps"), purge_step=first_step)
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror}; choose another --tensorboard_path") from None
        self.settings = settings
        charts = {
            tag: ["Multiline", [f"{tag}/{b}" for b in BRANCHES]] for tag in ("accuracy", "training_accuracy", "loss")
        }
        self.epochs.add_custom_scalars({"fused, audio and visual": charts})
        rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
        self.epochs.add_text("settings", f"| flag | value |\n|---|---|\n{rows}")
        for row in log:
            self.add_epoch(row)

    def add_epoch(self, row):
        """Write a row of the log."""
        for name, tag in SERIES.items():
            if row.get(name) is not None:
                self.epochs.add_scalar(tag, row[name], row["epoch"])
        self.flush()

    def add_step(self, number, figures):
        """Write figures of one step, named as in the log, if the series by step are wanted."""
        if self.steps:
            for name, value in figures.items():
                group, _, rest = SERIES[name].partition("/")
                self.steps.add_scalar(f"{group}_by_step/{rest}".rstrip("/"), value, number)

    def add_result(self, result, figure):
        """Write what a finished run came to: accuracies with its hyperparameters beside them, and a picture.

        Args:
            result: {"best": {"epoch": .., "fused": .., "audio": .., "visual": ..}, "last": ..}.
            figure: matplotlib Figure of the best epoch's confusion matrices.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = {f"{name}/{b}": row[b] for name, row in result.items() for b in BRANCHES if row[b] is not None}
        settings = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self.settings.items()
            if name not in FREE_SETTINGS
        }
        for summary in hparams(settings, metrics):  # SummaryWriter.add_hparams would make a second run of them
            self.epochs.file_writer.add_summary(summary)
        for tag, value in metrics.items():
            self.epochs.add_scalar(tag, value, result[tag.partition("/")[0]]["epoch"])
        self.epochs.add_figure("confusion", figure, result["best"]["epoch"], close=False)
        self.flush()

    def flush(self):
        self.epochs.flush()
        if self.steps:
            self.steps.flush()

    def close(self):
        self.epochs.close()
        if self.steps:
            self.steps.close()
