"""Measure the time and memory of each part of training, next to a plain implementation with the usual libraries.

    python benchmark.py                   # all parts, a few minutes on 2 CPU cores
    python benchmark.py reader step       # some parts

The plain implementations are in this file. The clips are synthetic: 2.5 s of audio at 16 kHz and a frame of 480 x 360,
the sizes of CREMA-D. Implementations of the same part run in turn. The table has the median of each implementation, and
its ratio to the median of the plain implementation. Step and epoch run on a GPU if there is one.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import cv2
import librosa
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms
from torchvision.transforms import v2

from data.extraction import quieten_decoders
from data.media import extract_frames
from dataset import build_dataset
from dataset.cache import prepare
from dataset.cremad import CREMAD
from dataset.loader import build_loader
from engine.build import build, build_optimizer
from engine.device import choose_device, return_freed_memory, set_precision
from engine.settings import complete, training_parser
from main_dgl import dgl_step, train_epoch
from utils.batches import IMAGENET_MEAN, IMAGENET_STD, to_device
from utils.config import at_least, parse_settings
from utils.errors import OneLineParser, run_script
from utils.pool import process_clips

PARTS = ("reader", "step", "epoch", "preprocessing")
CLIPS = 64
FLV = 2  # codec tag of Sorenson H.263 in FLV
ALPHA = 4.0


def take_turns(ways, rounds, clock=time.perf_counter):
    """Time several functions: run each once to warm up, then all of them in turn.

    Args:
        ways: {name: function}.
        rounds: how often each function is timed.
        clock: returns the current time in seconds.

    Returns:
        {name: median time in seconds}.
    """
    times = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def print_rows(title, unit, values, scale=1.0):
    """Print a line per value, times `scale`, with its ratio to the first value, that of the plain implementation."""
    plain = next(iter(values.values()))
    for name, value in values.items():
        print(f"{title:14} {name:34} {value * scale:10.3f} {unit:18} {value / plain:6.2f}", flush=True)


def make_clips(root):
    """Create a tiny CREMA-D of CLIPS training clips. Some of them are also the test set."""
    (root / "AudioWAV").mkdir()
    rows = []
    for k in range(CLIPS):
        rng = np.random.default_rng(k)
        image = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC)
        folder = root / "Image-01-FPS" / f"{k:03d}"
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "00000.jpg"), image)  # 36 KB; frames of CREMA-D have 31 to 41
        soundfile.write(root / "AudioWAV" / f"{k:03d}.wav", rng.normal(0, 0.1, 40000), 16000, subtype="PCM_16")
        rows.append(f"{k:03d},{CREMAD.classes[k % 6]}\n")
    (root / "train.csv").write_text("".join(rows))
    (root / "test.csv").write_text("".join(rows[:8]))


def settings(root, **changes):
    """Return the complete settings of a training run on the clips of `make_clips`, with some of them changed."""
    flags = {"audio_path": root / "AudioWAV", "visual_path": root, "split_path": root, "cache_path": root / "cache"}
    return complete(vars(parse_settings(training_parser(), {**flags, "ckpt_path": root / "run", **changes})))


def measure_reader(root, rounds):
    """Measure the processor time per clip from files to normalised batches, in one process with one thread.

    The last rows show how much slower our reader is when torchvision replaces our own normalisation or augmentation.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    normalisation = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform = {
        "train": transforms.Compose(
            [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalisation]
        ),
        "test": transforms.Compose([transforms.Resize((224, 224)), *normalisation]),
    }

    def plain(clips, split):
        items = []
        for clip in clips:
            samples, _ = librosa.load(clip.wav, sr=22050)
            samples = np.tile(samples, 66150 // len(samples) + 1)[:66150].clip(-1, 1)
            spectrogram = np.log(np.abs(librosa.stft(samples, n_fft=512, hop_length=353)) + 1e-7)
            image = Image.open(clip.files()[1]).convert("RGB")
            items.append((torch.from_numpy(spectrogram), transform[split](image).unsqueeze(1), clip.label))
        default_collate(items)

    def ours(dataset):
        batches = [list(range(k, min(k + 16, len(dataset)))) for k in range(0, len(dataset), 16)]
        for batch in batches:
            to_device(dataset[batch], torch.device("cpu"))

    augment = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def augmented_by_torchvision(dataset):
        with patch.object(dataset, "augment", lambda image: augment(image.permute(2, 0, 1)).permute(1, 2, 0)):
            ours(dataset)

    def normalised_by_torchvision(dataset):
        def by_torchvision(images):
            return normalise(images.movedim(-1, -3)).movedim(-3, -1)

        with patch("utils.batches.normalise", by_torchvision):
            ours(dataset)

    for split in ("train", "test"):
        cold, warm = (build_dataset(settings(root), split, training=split == "train") for _ in range(2))
        cold.clips = warm.clips = build_dataset(settings(root), "train").clips
        prepare(warm, settings(root), workers=os.cpu_count())
        batches = [warm.clips[k : k + 16] for k in range(0, CLIPS, 16)]
        ways = {
            "librosa, PIL, torchvision": lambda split=split, batches=batches: [plain(b, split) for b in batches],
            "ours, no cache": lambda cold=cold: ours(cold),
            "ours, warm cache": lambda warm=warm: ours(warm),
            "warm, torchvision normalises": lambda warm=warm: normalised_by_torchvision(warm),
        }
        if split == "train":
            ways["warm, torchvision augments"] = lambda warm=warm: augmented_by_torchvision(warm)
        times = take_turns(ways, 2 * rounds + 1, time.process_time)
        print_rows(f"reader {split}", "ms per clip, 1 core", times, 1000 / CLIPS)
    torch.set_num_threads(threads)


def one_step(way, batch_size, rounds):
    """Train on random clips in this process; print the median time of a step in s and the peak memory in GiB.

    Args:
        way: "plain" or "ours".
        batch_size: clips per step.
        rounds: number of timed steps.
    """
    if way == "ours":
        return_freed_memory()
    device = choose_device()
    set_precision(deterministic=False)
    model, _ = build(settings(Path()), device)
    model.train()
    if way == "plain":
        model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    frames = torch.randn(batch_size, 1, 224, 224, 3).permute(0, 4, 1, 2, 3)
    inputs = {"audio": torch.randn(batch_size, 1, 257, 188).to(device), "visual": frames.to(device)}
    label = torch.randint(6, (batch_size,)).to(device)

    def plain():
        features, fusion = {name: model.encode(name, x) for name, x in inputs.items()}, model.fusion_module
        unimodal = sum(F.cross_entropy(fusion.alone(name, feature), label) for name, feature in features.items())
        multimodal = F.cross_entropy(fusion.fuse({name: x.detach() for name, x in features.items()}), label)
        (ALPHA * unimodal).backward(retain_graph=True)
        fusion.zero_grad()
        multimodal.backward()
        return sum(parameter.grad.abs().sum().item() for parameter in model.parameters())

    def ours():
        return dgl_step(model, inputs, label, ALPHA)

    def step():
        optimizer.zero_grad()
        {"plain": plain, "ours": ours}[way]()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 40)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = take_turns({way: step}, rounds)[way]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:  # not ru_maxrss, which includes the parent process
        peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    print(seconds, peak)


def step_in_new_process(way, batch_size, rounds):
    """Run `one_step` in a new process and return [seconds, GiB]."""
    command = [sys.executable, "benchmark.py", "--way", way]
    command += ["--batch_size", str(batch_size), "--rounds", str(rounds)]
    done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def measure_step(root, rounds, batch_size):
    """Measure the time and the peak memory of a DGL step at 224 x 224: of the process, or on a GPU of all tensors."""
    measured = {"retain_graph, .item()": [], "ours": []}
    for _ in range(rounds):
        for name, way in zip(measured, ("plain", "ours"), strict=True):
            measured[name].append(step_in_new_process(way, batch_size, rounds=2))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in measured.items()
    }
    print_rows(f"step of {batch_size}", "s", {name: seconds for name, (seconds, _) in medians.items()})
    print_rows(f"step of {batch_size}", "GiB, peak", {name: peak for name, (_, peak) in medians.items()})


class InMemory(list):
    """The batches of a loader, all read in advance."""

    def __init__(self, loader):
        super().__init__(loader)
        self.dataset, self.sampler = loader.dataset, loader.sampler


def measure_epoch(root, rounds):
    """Measure an epoch of training through the loader, next to the same epoch with its batches in memory."""
    device, run_settings = choose_device(), settings(root, batch_size=16, learning_rate=1e-4)
    set_precision(deterministic=False)
    return_freed_memory()
    loader = build_loader(run_settings, "train", device)
    model, method = build(run_settings, device)
    optimizer, _ = build_optimizer(model, run_settings)
    memory = InMemory(loader)
    ways = {"batches in memory": memory, "through the loader": loader}
    ways = {name: partial(train_epoch, model, method, each, optimizer, device) for name, each in ways.items()}
    print_rows(f"epoch of {CLIPS}", "s", take_turns(ways, rounds))


def measure_preprocessing(root, rounds):
    """Measure the extraction of frames from 16 FLV clips on all cores.

    The clips are as in CREMA-D: 480 x 360, 30 frames per second, Sorenson's codec.
    """
    cv2.setNumThreads(1)  # OpenCV's threads do not survive the fork, and workers would wait for them forever
    for k in range(16):
        image = cv2.resize(np.random.default_rng(k).integers(0, 255, (12, 16, 3), np.uint8), (480, 360))
        writer = cv2.VideoWriter(str(root / f"{k}.flv"), cv2.CAP_FFMPEG, FLV, 30, (480, 360))
        for number in range(75):
            writer.write(np.roll(image, 4 * number, axis=1))
        writer.release()

    def plain():
        with tempfile.TemporaryDirectory() as folder:
            for k in range(16):
                capture, number = cv2.VideoCapture(str(root / f"{k}.flv")), 0
                while True:
                    has_frame, frame = capture.read()
                    if not has_frame:
                        break
                    if number % 30 == 0:
                        cv2.imwrite(f"{folder}/{k}-{number:05d}.jpg", frame)
                    number += 1

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            jobs = {str(k): (root / f"{k}.flv", Path(folder) / "frames" / str(k), Path(folder)) for k in range(16)}
            process_clips(extract_frames, jobs, start=quieten_decoders)

    print_rows("preprocessing", "ms per clip", take_turns({"read every frame": plain, "ours": ours}, rounds), 1000 / 16)


def main():
    parser = OneLineParser(description="Measure the time and memory of each part of training.")
    parser.add_argument("parts", nargs="*", choices=(*PARTS, "all"), default="all", help="what to measure")
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="rounds of timing (default: 3)")
    parser.add_argument("--batch_size", type=at_least(1), default=48, metavar="N", help="clips per step (default: 48)")
    parser.add_argument(
        "--way", choices=("plain", "ours"), help="run only this implementation of the step, in this process"
    )
    args = parser.parse_args()
    if args.way:
        one_step(args.way, args.batch_size, args.rounds)
        return
    print(f"{'':14} {'implementation':34} {'median':>10} {'':18} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_clips(root)
        for part in PARTS if "all" in args.parts else args.parts:
            extra = [args.batch_size] if part == "step" else []
            globals()[f"measure_{part}"](root, args.rounds, *extra)


if __name__ == "__main__":
    run_script(main)
