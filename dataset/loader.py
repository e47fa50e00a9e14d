"""Batches: which clips in which order, read by how many processes."""

import os
import signal
import sys
from functools import cache

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from dataset import build_dataset
from dataset.cache import prepare
from utils.errors import SIGNALS
from utils.pool import cores
from utils.training import distributed
from utils.training.seeds import derived_seed


class BatchSampler(Sampler):
    """Numbers of clips, a list per batch: every clip once. Of several processes each gets its part of every batch.

    In training the order is a function of (seed, epoch) alone, else that of the clips. It begins with batch `start`.
    """

    def __init__(self, dataset, batch_size):
        self.dataset, self.batch_size, self.start = dataset, batch_size, 0

    def batches(self):
        """The epoch's batches, before they are divided."""
        order = range(len(self.dataset))
        if self.dataset.decoder.training:
            generator = torch.Generator().manual_seed(derived_seed(self.dataset.seed, self.dataset.epoch, "order"))
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
        return [list(order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        return map(distributed.part, self.batches()[self.start :])


def ignore_signals(_):
    """Leave SIGINT and SIGTERM, which a terminal or a cluster sends to every process, to the one that trains."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def handed_over(batch):
    """A batch as it gets from a reader process to the one that trains: in shared memory, or else through a pipe.

    PyTorch would put it into shared memory in a thread, and lose it there where that is too small: the process that
    trains would wait for ever.
    """
    if get_worker_info() is None:
        return batch
    try:
        return [part.share_memory_() for part in batch]
    except RuntimeError:
        warn_of_shared_memory()
        return [part.numpy() for part in batch]


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
    with distributed.first_alone():
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
