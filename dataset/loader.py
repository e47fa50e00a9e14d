"""Data loading: which clips are in which batch, and how many workers read them."""

import atexit
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Listener

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from dataset import build_dataset
from utils.errors import SIGNALS, WORKER_KILLED, InputError, delay_signals, warn_once
from utils.pool import cores, process_fault
from utils.processes import first_process, rank, size
from utils.seeds import derived_seed

SHARED_MEMORY = "/dev/shm"
BATCHES_AHEAD = 2  # batches that each worker prepares in advance


class BatchSampler(Sampler):
    """Yield a list of clip numbers per batch; each of several processes gets its part of every batch.

    Training batches have equal size, in an order that depends on (seed, epoch) alone. The last, smaller batch is
    dropped, as in the authors' code, unless it is the only one. Evaluation takes every clip once.

    Attributes:
        size: clips of a batch in all processes; the last one of an evaluation may be smaller.
    """

    def __init__(self, dataset, batch_size):
        self.dataset, self.size = dataset, batch_size
        if dataset.training:
            self.size = min(batch_size, len(dataset)) // size() * size()

    def batches(self):
        """Return the epoch's batches of all processes."""
        order = range(len(self.dataset))
        if self.dataset.training:
            generator = torch.Generator().manual_seed(derived_seed(self.dataset.seed, self.dataset.epoch, "order"))
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
        return [list(order[i * self.size : (i + 1) * self.size]) for i in range(len(self))]

    def __len__(self):
        if self.dataset.training:
            return len(self.dataset) // self.size
        return -(-len(self.dataset) // self.size)

    def __iter__(self):  # a process without a clip of the last evaluation batch evaluates the batch's first clip
        return (batch[rank() :: size()] or batch[:1] for batch in self.batches())


def ignore_signals(_):
    """Ignore signals in a worker. A terminal or a cluster sends them to every process; the main one handles them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # which delay_signals has blocked


@atexit.register
def end_workers():
    """Kill workers that are left after an error. They ignore SIGTERM, so multiprocessing would wait forever."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report them as killed
        for worker in workers:
            worker.kill()


def move_to_shared_memory(batch):
    """Move a worker's batch to shared memory; raise an error if there is no room, where PyTorch's queue would hang."""
    if get_worker_info() is not None:
        inputs, label = batch
        for value in (*inputs.values(), label):
            value.share_memory_()
    return batch


class Loader(DataLoader):
    """A DataLoader that delays signals while it starts workers, and reports workers that cannot start or are killed."""

    def __iter__(self):
        try:
            with delay_signals():  # otherwise one could interrupt it between a worker's start and its registration
                batches = super().__iter__()
        except OSError as error:
            end_workers()
            raise InputError(
                f"{SHARED_MEMORY}: {error.strerror}; make it larger (docker run --shm-size=2g), or use --num_workers 0"
            ) from None
        try:
            yield from batches
        except (ConnectionError, EOFError):  # a worker was killed while it handed over a batch
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise its error during ours
            raise InputError(WORKER_KILLED) from None


def usable_workers(workers, batch_bytes):
    """Return how many of `workers` have room for their batches in shared memory; warn if not all have.

    Args:
        batch_bytes: size of a batch.
    """
    if workers == 0:
        return 0
    if reason := process_fault():
        warn_once(f"{reason}; loading data without workers")
        return 0
    try:
        Listener().close()  # PyTorch passes a batch's file descriptor through a socket like this one
    except OSError as error:
        warn_once(f"TMPDIR: {error}; loading data without workers; use a shorter or writable path")
        return 0
    if not os.path.isdir(SHARED_MEMORY):
        return workers
    state = os.statvfs(SHARED_MEMORY)
    batches = state.f_bavail * state.f_frsize // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) // max(batch_bytes, 1)
    usable = max(min(workers, (batches - 1) // BATCHES_AHEAD), 0)
    if usable < workers:
        warn_once(
            f"{SHARED_MEMORY}: too small for the batches of {workers} data-loading worker(s), using {usable}; "
            "make it larger (docker run --shm-size=2g), or use a smaller --batch_size"
        )
    return usable


def check_damage(datasets, max_skipped):
    """Raise InputError if more than the share `max_skipped` of the datasets' clips is damaged."""
    damaged = {clip_id: reason for dataset in datasets for clip_id, reason in dataset.damaged.items()}
    clips = len(damaged) + sum(map(len, datasets))
    if len(damaged) > max_skipped * clips:
        clip_id, reason = next(iter(damaged.items()))
        raise InputError(
            f"{len(damaged)} of {clips} clips cannot be decoded, more than --max_skipped {max_skipped:g} allows; "
            f"restore the clips or raise --max_skipped; the first is {clip_id}: {reason}"
        )


def build_loader(args, split, device, training=None, dataset=None):
    """Return a DataLoader over a dataset, by default `build_dataset(args, split, training)`.

    Its batches are for utils.batches.to_device. Clips that cannot be decoded are left out, the others cached
    (dataset/cache.py). The number of workers changes the speed and nothing else.

    Args:
        split: as for `Source.items`.
        device: torch.device of the model; for CUDA, batches are in pinned memory.

    Raises:
        InputError: a folder or list is missing or wrong, or no clip can be decoded.
    """
    dataset = build_dataset(args, split, training) if dataset is None else dataset
    dataset.prepare(args, max(args.num_workers or cores(), 1))
    sampler, workers = BatchSampler(dataset, args.batch_size), args.num_workers
    if workers is None:  # on the CPU the model needs the cores itself
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = max(1, min(cores() // 8 if device.type == "cpu" else cores() // processes, 16))
    if workers:
        inputs, _ = dataset[[0]]
        clip_bytes = sum(value.nbytes for value in inputs.values())
        workers = usable_workers(workers, clip_bytes * -(-min(sampler.size, len(dataset)) // size()))
    return Loader(
        dataset,
        batch_size=None,
        sampler=sampler,
        collate_fn=move_to_shared_memory,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # quick, at each epoch
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
    )


class Data:
    """The clips of a run.

    Args:
        settings: of the run.
        splits: splits that the method also reads: "val", "plain".

    Attributes:
        datasets: {split: ClipDataset}.
        description: for each split the number of clips listed, and hashes of names and labels and of the classes.
        loaders: {split: loader}; created by `load`.
        chosen_on: the split that chooses the best epoch, "val" or, as in the literature, "test".

    Raises:
        InputError: a folder or list is missing or wrong, or the processes cannot share a batch evenly.
    """

    def __init__(self, settings, splits=()):
        self.settings, self.chosen_on = settings, "val" if settings.val_ratio else "test"
        if settings.batch_size % size():
            raise InputError(
                f"--batch_size {settings.batch_size}: cannot be divided by {size()} processes; use "
                f"{max(settings.batch_size // size(), 1) * size()}"
            )
        self.datasets = {name: build_dataset(settings, name) for name in ("train", self.chosen_on, "test", *splits)}
        self.description = {
            split: {
                "clips": len(dataset.clips),
                "lists": f"{derived_seed(*((clip.id, clip.label) for clip in dataset.clips)):016x}",
                "classes": f"{derived_seed(*dataset.classes):016x}",
            }
            for split, dataset in self.datasets.items()
        }

    def load(self, device):
        """Decode the clips that are not in the cache, create the loaders, and print their sizes.

        Raises:
            InputError: too many clips are damaged, or fewer are left than there are processes.
        """
        settings = self.settings
        self.loaders = {
            name: build_loader(settings, name, device, dataset=dataset) for name, dataset in self.datasets.items()
        }
        for name, loader in self.loaders.items():
            print(f"{settings.dataset} {name}: {loader.dataset}")
        with first_process():
            if rank() == 0:
                self.warn_of_leaks()
            check_damage([loader.dataset for loader in self.loaders.values()], settings.max_skipped)
            clips = len(self.datasets["train"])
            if clips < size():
                raise InputError(f"{settings.dataset}: {clips} training clip(s) for {size()} processes; start fewer")
            if clips < settings.batch_size and rank() == 0:
                print(
                    f"warning: --batch_size {settings.batch_size}: only {clips} training clips, so every epoch is one "
                    "step with all of them; a smaller batch size makes more steps",
                    file=sys.stderr,
                )

    def warn_of_leaks(self):
        """Warn about clips that are in both the training and the test list. They inflate test accuracy."""
        train = {clip.id for clip in self.datasets["train"].clips}
        if shared := [clip.id for clip in self.datasets["test"].clips if clip.id in train]:
            print(
                f"warning: {len(shared)} clip(s) are in both the training and the test list, the first is {shared[0]}; "
                "they inflate test accuracy, so remove them from one of the lists",
                file=sys.stderr,
            )

    def set_epoch(self, epoch):
        """Set the epoch that order, frames, crops and flips depend on."""
        self.train.dataset.epoch = epoch

    @property
    def train(self):
        return self.loaders["train"]

    @property
    def choosing(self):
        """Return the loader of the split that chooses the best epoch."""
        return self.loaders[self.chosen_on]

    @property
    def test(self):
        return self.loaders["test"]
