"""Batches: which clips in which order, read by how many processes."""

import atexit
import multiprocessing
import os
import signal
import sys
from functools import cache

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from dataset import build_dataset
from dataset.cache import check_damage, prepare
from dataset.leaks import warn_of_leaks
from utils.errors import SIGNALS, InputError
from utils.pool import cores
from utils.processes import first_on_machine, first_process, rank, size
from utils.seeds import derived_seed


class BatchSampler(Sampler):
    """Numbers of clips, a list per batch; each of several processes gets its part of every batch.

    Training batches are of equal size, in an order that is a function of (seed, epoch) alone: the clips that are left
    over are dropped, as in the authors' code; fewer clips than a batch are one batch. Evaluation takes every clip once.

    Attributes:
        size: clips of a batch in all processes; the last one of an evaluation may be smaller.
    """

    def __init__(self, dataset, batch_size):
        self.dataset, self.size = dataset, batch_size
        if dataset.decoder.training:
            self.size = min(batch_size, len(dataset)) // size() * size()

    def batches(self):
        """Return the epoch's batches of all processes."""
        order = range(len(self.dataset))
        if self.dataset.decoder.training:
            generator = torch.Generator().manual_seed(derived_seed(self.dataset.seed, self.dataset.epoch, "order"))
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
        return [list(order[i * self.size : (i + 1) * self.size]) for i in range(len(self))]

    def __len__(self):
        if self.dataset.decoder.training:
            return len(self.dataset) // self.size
        return -(-len(self.dataset) // self.size)

    def __iter__(self):  # a process without a clip of an evaluation's last batch evaluates the first one once more
        return (batch[rank() :: size()] or batch[:1] for batch in self.batches())


def ignore_signals(_):
    """Leave the signals that a terminal or a cluster sends to every process to the main process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers():
    """Kill the workers that are left: they ignore SIGTERM, so that multiprocessing would wait for them at exit."""
    for worker in multiprocessing.active_children():
        worker.kill()


def handed_over(batch):
    """A batch as it gets from a reader process to the one that trains: in shared memory, or else through a pipe.

    PyTorch would put it into shared memory in a thread, and lose it there where that is too small: the process that
    trains would wait for ever.
    """
    if get_worker_info() is None:
        return batch
    inputs, label = batch
    try:
        return {name: value.share_memory_() for name, value in inputs.items()}, label
    except RuntimeError:
        warn_of_shared_memory()
        return {name: value.numpy() for name, value in inputs.items()}, label


@cache
def warn_of_shared_memory():
    """Tell it once in each reader process, on stderr."""
    if get_worker_info().id == 0:
        print(
            "warning: /dev/shm: too small for batches, which go through pipes, slower; make it larger "
            "(docker run --shm-size=2g), or give fewer --num_workers or a smaller --batch_size",
            file=sys.stderr,
        )


class Loader(DataLoader):
    """A DataLoader that tells of a reader process that was killed where a batch is waited for.

    PyTorch's handler of SIGCHLD raises wherever the process is, in the middle of writing a checkpoint, say.
    """

    told, waiting = None, False  # PyTorch's handler, and whether some loader waits for a batch

    def set_epoch(self, epoch):
        """Set the epoch that order, frames, crops and flips depend on."""
        self.dataset.set_epoch(epoch)

    def __iter__(self):
        batches = super().__iter__()
        if self.num_workers and Loader.told is None:
            Loader.told = signal.getsignal(signal.SIGCHLD)
            signal.signal(signal.SIGCHLD, lambda *event: Loader.told(*event) if Loader.waiting else None)
        return self.waited_for(batches) if self.num_workers else batches

    @staticmethod
    def waited_for(batches):
        for _ in range(len(batches)):
            Loader.waiting = True
            try:
                Loader.told(signal.SIGCHLD, None)  # one may have died since
                batch = next(batches)
            finally:
                Loader.waiting = False
            yield batch


def build_loader(args, split, device, training=None, dataset=None):
    """A DataLoader over a dataset, by default `build_dataset(args, split, training)`; to_device takes its batches.

    Clips that cannot be decoded are left out, the others' arrays cached (dataset/cache.py). The number of workers
    changes the speed and nothing else. Pinned memory on CUDA.
    """
    with first_on_machine():
        dataset = build_dataset(args, split, training) if dataset is None else dataset
        prepare(dataset, args, max(args.num_workers or cores(), 1))
    workers = args.num_workers
    if workers is None:  # on the CPU the model needs the cores itself
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = max(1, min(cores() // 8 if device.type == "cpu" else cores() // processes, 16))
    return Loader(
        dataset,
        batch_size=None,
        sampler=BatchSampler(dataset, args.batch_size),
        collate_fn=handed_over,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
    )


class Data:
    """The clips of a run.

    Args:
        settings: of the run.
        splits: what the method reads besides: "val", "plain".

    Attributes:
        datasets: {split: ClipDataset}, before it is known which clips can be decoded.
        description: for each split the number of clips listed, and hashes of names and labels and of the classes.
        loaders: {split: loader}; made by `load`.
        chosen_on: the split that chooses the best epoch, "val" or, as in the literature, "test".
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
        """Decode what is not in the cache, make the loaders, and print what is in them.

        Raises:
            InputError: too many clips are damaged, or there are fewer than processes.
        """
        settings = self.settings
        self.loaders = {
            name: build_loader(settings, name, device, dataset=dataset) for name, dataset in self.datasets.items()
        }
        for name, loader in self.loaders.items():
            print(f"{settings.dataset} {name}: {loader.dataset}")
        with first_process():
            if rank() == 0:
                warn_of_leaks(*(self.datasets[name].clips for name in ("train", "test")))
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
