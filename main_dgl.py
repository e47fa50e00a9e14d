"""Train an audio-visual classifier with Disentangled Gradient Learning (Wei, Luo, Luo; ICCV 2025; arXiv 2507.10213).

    python main_dgl.py --train --dataset CREMAD --alpha 4 --learning_rate 0.002 --ckpt_path ckpt/cremad
    python main_dgl.py --dataset CREMAD --ckpt_path ckpt/cremad        # evaluate its best.pth

The method is `dgl_step` below and the base class in models/fusion_modules.py: `grep -rn "DGL (" --include=*.py .`
"""

import json
import os
import sys
import time
from collections import deque

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataset import DATASETS, build_loader, fill_defaults
from models.basic_model import MODALITIES, AVClassifier
from models.fusion_modules import FUSION_MODULES
from utils import checkpoint, options
from utils.batchnorm import refresh_batchnorm
from utils.device import choose_device
from utils.errors import InputError, run
from utils.evaluation import evaluate
from valid import validate

BATCHNORM_CLIPS = 256  # clips over which BatchNorm's statistics are averaged before an evaluation


def dgl_step(model, spectrogram, frames, label, alpha):
    """Forward and backward of one DGL step (paper section 3; DESIGN section 1).

    Leaves in `.grad`: encoders alpha * d(L_a + L_v), fusion module d(L_m). The caller zeroes, clips and steps.
    The three problems share no graph, so each encoder's activations are freed before the next one runs.

    Args:
        model: AVClassifier with both modalities.
        spectrogram: (B, 1, F, T).
        frames: (B, 3, N, H, W).
        label: (B,), class numbers.
        alpha: weight of the unimodal losses.

    Returns:
        (loss, loss_a, loss_v): multimodal, audio and visual cross-entropy, detached scalars on the model's device.
    """
    fusion = model.fusion_module
    features, losses = [], []
    for encoder, encode, alone, clip in (
        (model.audio_net, model.encode_audio, fusion.audio_alone, spectrogram),
        (model.visual_net, model.encode_video, fusion.visual_alone, frames),
    ):
        feature = encode(clip)  # (B, 512)
        # DGL (1): unimodal regularisation, the fusion module's own weights score each modality alone
        loss_u = F.cross_entropy(alone(feature), label)
        # DGL (3): the unimodal gradient ends in its encoder, fusion sees none of it
        (alpha * loss_u).backward(inputs=list(encoder.parameters()))
        features.append(feature)
        losses.append(loss_u.detach())
    loss = F.cross_entropy(fusion(*features), label)  # fusion detaches the features: key point 2
    loss.backward()  # the encoders' graphs are gone: were the features not detached, this would raise
    return loss.detach(), *losses


def unimodal_step(model, spectrogram, frames, label):
    """Forward and backward of one encoder with its linear classifier; shapes and result as `dgl_step`.

    The loss of the modality that the model lacks is NaN.
    """
    logits, logits_a, _ = model(spectrogram, frames)
    loss = F.cross_entropy(logits, label)
    loss.backward()
    loss, missing = loss.detach(), torch.full_like(loss, float("nan"))
    return (loss, missing, loss) if logits_a is None else (loss, loss, missing)


def train_epoch(model, loader, optimizer, device, args):
    """One epoch of steps -> mean (loss, loss_a, loss_v) per clip, floats. Leaves fresh BatchNorm statistics."""
    model.train()
    total = torch.zeros(3, device=device)
    recent = deque(maxlen=-(-BATCHNORM_CLIPS // args.batch_size))
    progress = tqdm(loader, f"epoch {loader.dataset.epoch}", unit="step", leave=False, disable=not sys.stderr.isatty())
    for spectrogram, frames, label in progress:
        spectrogram = spectrogram.to(device, non_blocking=True).unsqueeze(1)
        frames, label = frames.to(device, non_blocking=True), label.to(device, non_blocking=True)
        optimizer.zero_grad()
        if args.modality == "full":
            losses = dgl_step(model, spectrogram, frames, label, args.alpha)
        else:
            losses = unimodal_step(model, spectrogram, frames, label)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=40)
        optimizer.step()
        total += torch.stack(losses) * len(label)
        if len(label) == args.batch_size:
            recent.append((spectrogram, frames))
    refresh_batchnorm(model, recent)
    return (total / len(loader.dataset)).tolist()


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


def train(args):
    """Train for args.epochs epochs; write best.pth, last.pth and log.jsonl into args.ckpt_path."""
    device = choose_device(args.device, args.gpu_ids)
    train_loader, test_loader = build_loader(args, "train", device), build_loader(args, "test", device)
    for split, loader in (("train", train_loader), ("test", test_loader)):
        skipped = loader.dataset.skipped
        note = f", {len(skipped)} skipped for want of sound or frames, {skipped[0]} first" if skipped else ""
        print(f"{args.dataset} {split}: {len(loader.dataset)} clips{note}")

    torch.manual_seed(args.random_seed)
    model = AVClassifier(DATASETS[args.dataset].n_classes, args.fusion_method, args.modality)
    model.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on the CPU
    optimizer, scheduler = build_optimizer(model, args)

    log_path = os.path.join(args.ckpt_path, "log.jsonl")
    try:
        os.makedirs(args.ckpt_path, exist_ok=True)
        with open(log_path, "w"):
            pass  # a new run begins a new log
    except OSError as error:
        raise InputError(f"{args.ckpt_path}: {error.strerror}; choose another --ckpt_path") from None
    board = None
    if args.use_tensorboard:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only on demand

        board = SummaryWriter(args.tensorboard_path or os.path.join(args.ckpt_path, "tensorboard"))

    print(f"training on {device}, {len(train_loader)} steps an epoch, checkpoints in {args.ckpt_path}")
    best = -1.0
    for epoch in range(args.epochs):
        start = time.perf_counter()
        train_loader.dataset.set_epoch(epoch)
        learning_rate = scheduler.get_last_lr()[0]
        loss, loss_a, loss_v = train_epoch(model, train_loader, optimizer, device, args)
        scheduler.step()
        accuracies, _ = evaluate(model, test_loader, device)

        improved = accuracies["fused"] > best
        best = max(best, accuracies["fused"])
        state = {
            "epoch": epoch,
            "accuracy": accuracies,
            "best": best,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        for name in ("last", "best") if improved else ("last",):
            checkpoint.save(os.path.join(args.ckpt_path, f"{name}.pth"), model, vars(args), **state)

        losses = {"loss": loss, "loss_a": loss_a, "loss_v": loss_v}
        losses = {name: None if value != value else value for name, value in losses.items()}  # JSON knows no NaN
        seconds = time.perf_counter() - start
        row = {
            "epoch": epoch,
            "learning_rate": learning_rate,
            **losses,
            **accuracies,
            "best": best,
            "seconds": seconds,
        }
        with open(log_path, "a") as log:
            print(json.dumps(row), file=log)
        print(summary(row, args.epochs), flush=True)
        if board:
            for name, value in row.items():
                if name != "epoch" and value is not None:
                    board.add_scalar(name, value, epoch)
    if board:
        board.close()
    print(f"best fused accuracy {best:.4f}; validate with: python valid.py --ckpt_path {args.ckpt_path}/best.pth")


def summary(row, epochs):
    """One epoch's log row as a line for the terminal."""

    def show(name):
        return "   -  " if row[name] is None else f"{row[name]:.4f}"

    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}  loss {show('loss')} audio {show('loss_a')} visual {show('loss_v')}"
        f"  accuracy {show('fused')} audio {show('audio')} visual {show('visual')}"
        f"  best {show('best')}  {row['seconds']:.0f} s"
    )


def main():
    parser = options.training_parser(tuple(DATASETS), tuple(FUSION_MODULES), MODALITIES)
    args, typed = options.parse(parser)
    if args.modulation != "Normal":
        raise InputError(f"--modulation {args.modulation}: DGL leaves no joint gradient to modulate; use Normal")
    for name in ("modulation_starts", "modulation_ends"):
        if name in typed:
            print(f"warning: --{name}: no effect with --modulation Normal", file=sys.stderr)
    if args.train:
        train(fill_defaults(args))
    else:
        validate(os.path.join(args.ckpt_path, "best.pth"), typed)


if __name__ == "__main__":
    run(main)
