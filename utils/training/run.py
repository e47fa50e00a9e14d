"""The state of a training run: what it was given and has learnt, how far it is, how it is saved and goes on."""

import math
import os
import time
from collections import deque
from contextlib import contextmanager

import torch

from utils.errors import InputError, Interrupted
from utils.training import checkpoint, distributed
from utils.training.device import to_device
from utils.training.interruption import Interruption
from utils.training.measurement import GRADIENTS, gradient_norms, named, read_later
from utils.training.seeds import derived_seed

BATCHNORM_CLIPS = 256  # clips over which BatchNorm's statistics are averaged before an evaluation


class Run:
    """All that is handed about while a model is trained.

    Args:
        args: settings, with their defaults filled in.
        device: torch.device.
        model: AVClassifier as it begins, on the device.
        method: its training rule.
        loaders: {split: loader}, "train" among them.

    Attributes:
        shared: the model's twin that several processes train, see utils/training/distributed.py.
        optimizer, schedule: as the settings name them.
        clips: a digest of the training clips; resumed on others the run would go astray.
        journal: what shows and writes the run, see utils/results/journal.py; set by the caller.
        log: a row per epoch that is done.
        progress: of the epoch in hand, {"epoch", "step": steps done, "totals": (3, 3)}; the totals are sums over its
            steps of losses (times clips), right answers and gradient magnitudes.
    """

    journal = None

    def __init__(self, args, device, model, method, loaders):
        self.args, self.device, self.model, self.method, self.loaders = args, device, model, method, loaders
        self.shared, self.interruption = distributed.Shared(model), Interruption()
        self.optimizer, self.schedule = build_optimizer(model, args)
        self.loader = loaders["train"]
        self.clips = derived_seed(*(clip.id for clip in self.loader.dataset.clips))
        self.log, self.progress = [], start_of(0)
        self.best_path, self.last_path = (os.path.join(args.ckpt_path, name) for name in ("best.pth", "last.pth"))

    @contextmanager
    def opened(self, as_of_today):
        """Go on with the run that is in the folder, if one is; end the readers with the block.

        Args:
            as_of_today: a function that gives an older run's settings the form that `args` has.

        Raises:
            InputError: the run that is there does not fit, or the folder is not the same for all processes.
        """
        with distributed.first_alone():  # of several processes one speaks
            if os.path.exists(self.last_path) and not self.args.overwrite:
                self.resume(as_of_today)
        found = os.path.isdir(self.args.ckpt_path), self.progress["epoch"], self.progress["step"]
        if any(other != found for other in distributed.everyones(found)):
            raise InputError(
                f"{self.args.ckpt_path}: not the same on all machines; --ckpt_path must be on a shared disk"
            )
        try:
            yield
        finally:  # reader processes end with their loaders; kept alive they would be waited for in vain at exit
            self.loader = None
            self.loaders.clear()

    def resume(self, as_of_today):
        saved = checkpoint.resume(self, as_of_today)
        if saved.get("clips") != self.clips:
            raise InputError(
                f"{self.last_path}: of other training clips, some could be decoded then or now alone; restore them, "
                "or choose another --ckpt_path"
            )
        self.log, self.progress = saved["log"], saved["progress"]
        print(f"resuming in epoch {self.progress['epoch']} after {self.progress['step']} steps")

    def save(self, path):
        """Write the model to `path`, and to last.pth all that the run is; of several processes the first one writes."""
        if distributed.rank() > 0:
            return
        epoch, state = self.log[-1]["epoch"] if self.log else None, {}
        if path == self.last_path:
            state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.schedule.state_dict()}
            state |= {"method": self.method.state_dict(), "clips": self.clips}
            state |= {"log": self.log, "progress": self.progress}
        classes = list(self.loader.dataset.classes)
        checkpoint.save(path, self.model, vars(self.args), epoch=epoch, classes=classes, **state)

    @contextmanager
    def saved_when_interrupted(self):
        """A block that SIGINT and SIGTERM end between two steps, the run saved."""
        try:
            with self.interruption:
                yield
        except Interrupted as stopped:
            self.save(self.last_path)
            where = f"epoch {self.progress['epoch']} after {self.progress['step']} steps"
            message = f"interrupted in {where}, saved; the same command goes on from there"
            raise Interrupted(stopped.number, message) from None

    def begin_epoch(self):
        """Make model and method ready for the epoch in hand."""
        epoch, done = self.progress["epoch"], self.progress["step"]
        self.method.epoch, self.start = epoch, time.perf_counter()
        if not self.progress.get("begun", done > 0):  # a run may stop between this and the first step
            self.method.begin_epoch(epoch, self.model, self.loaders, self.device)
            self.progress["begun"] = True
        self.model.train()
        self.recent = deque(maxlen=-(-BATCHNORM_CLIPS // self.args.batch_size))

    def batches(self):
        """Yield the epoch's steps from progress["step"] on: (number, clips in all processes, batch on the device).

        A few batches before it are read again, for BatchNorm alone, which `recent` keeps the last ones for.
        """
        done, size = self.progress["step"], self.args.batch_size
        first = max(0, done - self.recent.maxlen - 1)
        self.loader.dataset.set_epoch(self.progress["epoch"])
        self.loader.sampler.start = first
        batches = self.journal.watch(self.interruption.watch(self.loader), first)
        for number, batch in enumerate(batches, start=first):
            spectrogram, frames, label = to_device(batch, self.device)
            clips = min(size, len(self.loader.dataset) - number * size)
            if clips == size:
                self.recent.append((spectrogram, frames))
            if number < done:
                continue
            torch.manual_seed(derived_seed(self.args.random_seed, self.progress["epoch"], "noise", number))
            self.shared.model.share = distributed.share(clips)
            self.measured = None
            yield number, clips, (spectrogram, frames, label)

    def finish(self):
        """End an update: average fusion's gradients over the processes, clip them all to 40, let the optimiser step.

        What is measured of the gradients, (4,), is that of the step's larger update where it has several.
        """
        self.shared.reduce_fusion()
        for name in self.model.frozen:
            for parameter in getattr(self.model, name).parameters():
                parameter.grad = None  # neither clipped with the others nor weight decay
        unmeasured = torch.full((3,), float("nan"), device=self.device)
        magnitudes = gradient_norms(self.model) if self.args.use_tensorboard else unmeasured
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=40)
        self.optimizer.step()
        self.optimizer.zero_grad()
        measured = torch.cat([magnitudes, norm.unsqueeze(0)])
        self.measured = measured if self.measured is None else torch.maximum(self.measured, measured)

    def figures(self, losses, hits):
        """A function that gives a step's figures, of all processes, as a list, waiting for a GPU that is not done yet.

        Args:
            losses: (loss, loss_a, loss_v) as Method.step returns them.
            hits: right answers of each, (3,).
        """
        share = self.shared.model.share
        of_all = distributed.total(torch.cat([torch.stack(losses) * share, hits * (share > 0)]))
        return read_later(torch.cat([of_all, self.measured]))

    def count(self, number, clips, read):
        """Count a step that is done in `progress`, and show it; its figures are read now.

        Raises:
            InputError: a loss or a gradient is not finite.
        """
        *measured, norm = read()
        measured = torch.tensor(measured, dtype=torch.float64).view(3, 3)
        losses = measured[0] if self.args.modality == "full" else measured[0, :1]
        if not math.isfinite(norm) or not losses.isfinite().all():
            clips_of_step = (self.loader.dataset.clips[i].id for i in self.loader.sampler.batches()[number])
            raise InputError(
                f"loss or gradient not finite in epoch {self.progress['epoch']}, step {number}: lower --learning_rate, "
                f"or look at its clips; nothing of this epoch is saved in {self.args.ckpt_path}; "
                f"clips {', '.join(clips_of_step)}"
            )
        self.progress["step"] += 1
        self.progress["totals"] += measured * torch.tensor([[clips], [1], [1]])
        self.journal.step(measured, clips)

    def means(self):
        """The epoch's mean losses and accuracies per clip, and mean gradient magnitudes per step if they were measured.

        Returns:
            {"loss": .., "loss_a": .., "loss_v": .., "train_fused": .., ...}; None for what the model lacks.
        """
        clips, steps = len(self.loader.dataset), len(self.loader)
        means = named(self.progress["totals"] / torch.tensor([[clips], [clips], [steps]]))
        means = {name: mean for name, mean in means.items() if self.args.use_tensorboard or name not in GRADIENTS}
        return means | self.method.row()

    def end_epoch(self, row):
        """Add the row to the log, save last.pth, and best.pth where it is the best so far, and show it."""
        row["seconds"] = time.perf_counter() - self.start
        self.schedule.step()
        self.log, self.progress = [*self.log, row], start_of(self.progress["epoch"] + 1)
        if best_of(self.log) is row:
            self.save(self.best_path)
        self.save(self.last_path)
        self.journal.epoch()


def start_of(epoch):
    """The progress of an epoch of which no step is done yet: see Run."""
    return {"epoch": epoch, "step": 0, "totals": torch.zeros(3, 3, dtype=torch.float64)}


def best_of(log):
    """The row of the best epoch, the first one where several are best."""
    return max(log, key=lambda row: row["fused"])


def build_optimizer(model, args):
    """The optimiser that --optimizer names, weight decay 1e-4, and the schedule that decays at --lr_decay_step."""
    kwargs = {"lr": args.learning_rate, "weight_decay": 1e-4}
    if args.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **kwargs)
    elif args.optimizer == "AdaGrad":
        optimizer = torch.optim.Adagrad(model.parameters(), **kwargs)
    else:
        optimizer = torch.optim.Adam(model.parameters(), **kwargs)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, args.lr_decay_step, args.lr_decay_ratio)
