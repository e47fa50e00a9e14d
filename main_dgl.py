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
from functools import partial

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataset import DATASETS, build_loader, fill_defaults
from dataset.clips import derived_seed
from models.basic_model import MODALITIES, AVClassifier
from models.fusion_modules import FUSION_MODULES
from utils import checkpoint, options
from utils.baselines import ablation_step, joint_step, unimodal_step
from utils.batchnorm import refresh_batchnorm
from utils.device import choose_device
from utils.errors import InputError, run
from utils.evaluation import BRANCHES, evaluate
from utils.files import write_json
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


def choose_step(args, epoch):
    """The training rule that the flags select for an epoch: a function of (model, spectrogram, frames, label)."""
    if args.modality != "full":
        return unimodal_step
    if args.method == "joint":
        modulated = args.modulation_starts <= epoch <= args.modulation_ends
        return partial(joint_step, modulation=args.modulation if modulated else "Normal", ogm_alpha=args.ogm_alpha)
    if args.no_mgt or args.no_ugt:
        return partial(ablation_step, alpha=args.alpha, mgt=not args.no_mgt, ugt=not args.no_ugt)
    return partial(dgl_step, alpha=args.alpha)


def train_epoch(model, loader, optimizer, device, args):
    """One epoch of steps -> mean (loss, loss_a, loss_v) per clip, floats. Leaves fresh BatchNorm statistics."""
    model.train()
    step = choose_step(args, loader.dataset.epoch)
    torch.manual_seed(derived_seed(args.random_seed, loader.dataset.epoch, "noise"))  # drawn by OGM-GE
    total = torch.zeros(3, device=device)
    recent = deque(maxlen=-(-BATCHNORM_CLIPS // args.batch_size))
    progress = tqdm(loader, f"epoch {loader.dataset.epoch}", unit="step", leave=False, disable=not sys.stderr.isatty())
    for spectrogram, frames, label in progress:
        spectrogram = spectrogram.to(device, non_blocking=True).unsqueeze(1)
        frames, label = frames.to(device, non_blocking=True), label.to(device, non_blocking=True)
        optimizer.zero_grad()
        losses = step(model, spectrogram, frames, label)
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
    """Train for args.epochs epochs; write best.pth, last.pth, log.jsonl and result.json into args.ckpt_path.

    The best epoch is chosen on the test set, as the literature does, or with args.val_ratio on the training clips that
    it holds out; then the test set is seen once, after the last epoch.
    """
    device = choose_device(args.device, args.gpu_ids)
    chosen_on = "val" if args.val_ratio else "test"
    loaders = {split: build_loader(args, split, device) for split in dict.fromkeys(("train", chosen_on, "test"))}
    for split, loader in loaders.items():
        print(f"{args.dataset} {split}: {loader.dataset}")

    torch.manual_seed(args.random_seed)
    model = AVClassifier(DATASETS[args.dataset].n_classes, args.fusion_method, args.modality)
    model.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on the CPU
    optimizer, scheduler = build_optimizer(model, args)

    log_path, result_path = (os.path.join(args.ckpt_path, name) for name in ("log.jsonl", "result.json"))
    try:
        os.makedirs(args.ckpt_path, exist_ok=True)
        with open(log_path, "w"):
            pass  # a new run begins a new log
        if os.path.exists(result_path):
            os.remove(result_path)
    except OSError as error:
        raise InputError(f"{args.ckpt_path}: {error.strerror}; choose another --ckpt_path") from None
    board = None
    if args.use_tensorboard:
        from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only on demand

        board = SummaryWriter(args.tensorboard_path or os.path.join(args.ckpt_path, "tensorboard"))

    print(f"training on {device}, {len(loaders['train'])} steps an epoch, checkpoints in {args.ckpt_path}")
    best = {"fused": -1.0}
    for epoch in range(args.epochs):
        start = time.perf_counter()
        loaders["train"].dataset.set_epoch(epoch)
        learning_rate = scheduler.get_last_lr()[0]
        loss, loss_a, loss_v = train_epoch(model, loaders["train"], optimizer, device, args)
        scheduler.step()
        accuracies, _ = evaluate(model, loaders[chosen_on], device)

        last = {"epoch": epoch, **accuracies}
        improved = accuracies["fused"] > best["fused"]
        best = last if improved else best
        state = {
            "epoch": epoch,
            "accuracy": accuracies,
            "best": best["fused"],
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        for name in ("last", "best") if improved else ("last",):
            checkpoint.save(os.path.join(args.ckpt_path, f"{name}.pth"), model, vars(args), **state)

        losses = {"loss": loss, "loss_a": loss_a, "loss_v": loss_v}
        losses = {name: None if value != value else value for name, value in losses.items()}  # JSON knows no NaN
        row = {
            "epoch": epoch,
            "learning_rate": learning_rate,
            **losses,
            "split": chosen_on,
            **accuracies,
            "best": best["fused"],
            "seconds": time.perf_counter() - start,
        }
        with open(log_path, "a") as log:
            print(json.dumps(row), file=log)
        print(summary(row, args.epochs), flush=True)
        if board:
            for name, value in row.items():
                if name not in ("epoch", "split") and value is not None:
                    board.add_scalar(name, value, epoch)
    if board:
        board.close()

    if chosen_on != "test":
        accuracies, _ = evaluate(model, loaders["test"], device)
        last = {"epoch": epoch, **accuracies}
        model.load_state_dict(checkpoint.load(os.path.join(args.ckpt_path, "best.pth"))["model"])
        accuracies, _ = evaluate(model, loaders["test"], device)
        best = {"epoch": best["epoch"], **accuracies}
    for name, result in (("best", best), ("last", last)):
        print(f"test accuracy, {name} epoch {result['epoch']}:  {show(result, BRANCHES)}")
    write_json(result_path, {"best": best, "last": last, "chosen_on": chosen_on, "settings": vars(args)})
    print(f"validate with: python valid.py --ckpt_path {args.ckpt_path}/best.pth")


def show(values, names):
    """Values by name on one line, such as 'fused 0.9833  audio 0.9067', a dash for None."""
    return "  ".join(f"{name} {'  -   ' if values[name] is None else f'{values[name]:.4f}'}" for name in names)


def summary(row, epochs):
    """One epoch's log row as a line for the terminal."""
    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}  {show(row, ('loss', 'loss_a', 'loss_v'))}"
        f"  {row['split']} accuracy: {show(row, (*BRANCHES, 'best'))}  {row['seconds']:.0f} s"
    )


def check_method(args, typed):
    """Refuse flags of the method that contradict each other; warn of those without effect.

    Raises:
        InputError: names the flag and what to leave out.
    """
    ablations = [f"--{name}" for name in ("no_mgt", "no_ugt") if getattr(args, name)]
    if args.modality != "full" and (ablations or args.method == "joint" or args.modulation != "Normal"):
        raise InputError(
            f"--modality {args.modality}: one encoder alone has one way to train; "
            "leave out --method, --modulation, --no_mgt, --no_ugt"
        )
    if args.method == "dgl" and args.modulation != "Normal":
        raise InputError(
            f"--modulation {args.modulation}: modulates the gradient of joint training, of which DGL leaves none; "
            "add --method joint"
        )
    if args.method == "joint" and ablations:
        raise InputError(f"{ablations[0]}: an ablation of DGL; leave out --method joint")
    if args.modulation_starts > args.modulation_ends:
        raise InputError(
            f"--modulation_starts {args.modulation_starts}: after --modulation_ends {args.modulation_ends}"
        )
    for name in ("modulation_starts", "modulation_ends", "ogm_alpha"):
        if name in typed and args.modulation == "Normal":
            print(f"warning: --{name}: no effect with --modulation Normal", file=sys.stderr)


def main():
    parser = options.training_parser(tuple(DATASETS), tuple(FUSION_MODULES), MODALITIES)
    args, typed = options.parse(parser)
    check_method(args, typed)
    if args.train:
        train(fill_defaults(args))
    else:
        validate(os.path.join(args.ckpt_path, "best.pth"), typed)


if __name__ == "__main__":
    run(main)
