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
from contextlib import ExitStack
from functools import partial

from dataset import DATASETS, fill_defaults
from models import FUSION_MODULES, MODALITIES
from utils import options
from utils.errors import InputError, Interrupted, run


def parse_flags():
    """The flags: (args, typed) as utils.options.parse, checked.

    Raises:
        InputError: a flag is wrong, or contradicts another.
    """
    args, typed = options.parse(options.training_parser(tuple(DATASETS), tuple(FUSION_MODULES), MODALITIES))
    options.check_method(args, typed)
    return args, typed


if __name__ == "__main__":
    flags = run(parse_flags)  # --help and wrong flags need not wait the seconds that PyTorch takes to import

import torch
import torch.nn.functional as F
from tqdm import tqdm

from dataset.cache import refuse_much_damage
from dataset.loader import build_loader
from models.basic_model import AVClassifier
from utils import checkpoint, distributed
from utils.baselines import ablation_step, joint_step, unimodal_step
from utils.batchnorm import refresh_batchnorm
from utils.device import choose_device, set_precision, to_device
from utils.evaluation import BRANCHES, evaluate
from utils.files import exclusive, write_csv, write_json, write_text
from utils.interruption import Interruption
from utils.seeds import derived_seed
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


def train_epoch(model, shared, loader, optimizer, device, args, progress, interruption):
    """Train from step `progress["step"]` to the end of the epoch; leave fresh BatchNorm statistics.

    `progress` is kept up to date after each step, {"epoch", "step": steps done, "total": losses summed over clips
    (3,)}, so that it can be saved with the model when `interruption` raises Interrupted, between two steps. `shared` is
    the model's distributed.Shared.

    Returns:
        {"loss": .., "loss_a": .., "loss_v": ..}, means per clip; None for a modality that the model lacks.

    Raises:
        InputError: a loss is not finite.
    """
    model.train()
    epoch, done = progress["epoch"], progress["step"]
    step = choose_step(args, epoch)
    recent = deque(maxlen=-(-BATCHNORM_CLIPS // args.batch_size))
    loader.dataset.set_epoch(epoch)
    loader.sampler.start = first = max(0, done - recent.maxlen - 1)  # until `done` for BatchNorm alone
    batches = interruption.watch(loader)
    quiet = distributed.rank() > 0 or not sys.stderr.isatty()
    bar = tqdm(batches, f"epoch {epoch}", len(loader), leave=False, initial=first, disable=quiet)
    pending = None  # losses and gradient norm of the previous step: a GPU has its next work when it is asked for them
    try:
        for number, batch in enumerate(bar, start=first):
            spectrogram, frames, label = to_device(batch, device)
            clips = min(args.batch_size, len(loader.dataset) - number * args.batch_size)  # in all processes
            if clips == args.batch_size:
                recent.append((spectrogram, frames))
            if number < done:
                continue
            torch.manual_seed(derived_seed(args.random_seed, epoch, "noise", number))  # drawn by OGM-GE
            shared.share = distributed.share(clips)
            optimizer.zero_grad()
            losses = torch.stack(step(shared.model, spectrogram, frames, label))
            shared.reduce_fusion()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=40)
            optimizer.step()
            losses = distributed.total(losses * shared.share)
            refuse_non_finite(pending, loader, args, progress)
            pending = norm + (losses.sum() if args.modality == "full" else losses[0])
            progress["step"], progress["total"] = number + 1, progress["total"].to(device) + losses * clips
    finally:  # also when it is interrupted and about to be saved
        refuse_non_finite(pending, loader, args, progress)
    refresh_batchnorm(model, recent)
    means = (progress["total"] / len(loader.dataset)).tolist()
    return {n: None if x != x else x for n, x in zip(("loss", "loss_a", "loss_v"), means, strict=True)}  # NaN: lacks it


def refuse_non_finite(value, loader, args, progress):
    """Raise InputError if the value () of step `progress["step"] - 1`, None before the first, is not finite."""
    if value is None or value.isfinite():
        return
    number = progress["step"] - 1
    ids = [loader.dataset.clips[i].id for i in loader.sampler.batches()[number]]
    raise InputError(
        f"loss or gradient not finite in epoch {progress['epoch']}, step {number}: lower --learning_rate, or look at "
        f"its clips; nothing of this epoch is saved in {args.ckpt_path}; clips {', '.join(ids)}"
    )


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


def train(args, device):
    """Train until args.epochs epochs are done; write best.pth, last.pth, log.jsonl and result.json into args.ckpt_path.

    The best epoch is chosen on the test set, as the literature does, or with args.val_ratio on the training clips that
    it holds out; then the test set is seen once, after the last epoch.
    """
    set_precision(args.deterministic)
    chosen_on = "val" if args.val_ratio else "test"
    loaders = {split: build_loader(args, split, device) for split in dict.fromkeys(("train", chosen_on, "test"))}
    for split, loader in loaders.items():
        print(f"{args.dataset} {split}: {loader.dataset}")
    refuse_much_damage([loader.dataset for loader in loaders.values()], args.max_skipped)

    torch.manual_seed(args.random_seed)
    model = AVClassifier(DATASETS[args.dataset].n_classes, args.fusion_method, args.modality)
    model.amp = args.amp == "bf16"
    model.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on the CPU
    shared, first = distributed.Shared(model), distributed.rank() == 0
    optimizer, scheduler = build_optimizer(model, args)
    clips = derived_seed(*(clip.id for clip in loaders["train"].dataset.clips))  # resumed on others it would go astray
    state = {"log": [], "progress": start_of(0)}  # with model, optimiser and schedule all that a run is
    best_path, last_path, log_path, result_path = (
        os.path.join(args.ckpt_path, name) for name in ("best.pth", "last.pth", "log.jsonl", "result.json")
    )

    def save(path):
        epoch = state["log"][-1]["epoch"] if state["log"] else None
        schedules = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        classes = list(loaders["train"].dataset.classes)
        if first:
            checkpoint.save(path, model, vars(args), epoch=epoch, classes=classes, clips=clips, **schedules, **state)

    with ExitStack() as stack:
        with distributed.first_alone():
            if first:
                stack.enter_context(exclusive(args.ckpt_path, "--ckpt_path"))
            if os.path.exists(last_path):
                if not args.resume:
                    raise InputError(
                        f"{last_path}: a run is there; --resume goes on with it, or choose another --ckpt_path"
                    )
                saved = checkpoint.resume(last_path, vars(args), model, optimizer, scheduler)
                if saved.get("clips") != clips:
                    raise InputError(
                        f"{last_path}: of other training clips; restore them, or choose another --ckpt_path"
                    )
                state = {"log": saved["log"], "progress": saved["progress"]}
                print(f"resuming in epoch {state['progress']['epoch']} after {state['progress']['step']} steps")
        write_log(log_path, state["log"])
        write_skipped(os.path.join(args.ckpt_path, "skipped.csv"), loaders)
        if os.path.exists(result_path):
            os.remove(result_path)
        board = open_board(args, state["log"]) if args.use_tensorboard else None
        print(f"training on {device}, {len(loaders['train'])} steps an epoch, checkpoints in {args.ckpt_path}")
        try:
            with Interruption() as interruption:
                while state["progress"]["epoch"] < args.epochs:
                    start, progress = time.perf_counter(), state["progress"]
                    losses = train_epoch(
                        model, shared, loaders["train"], optimizer, device, args, progress, interruption
                    )
                    accuracies, _ = evaluate(model, interruption.watch(loaders[chosen_on]), device)
                    row = {"epoch": progress["epoch"], "learning_rate": scheduler.get_last_lr()[0], **losses}
                    row |= {"split": chosen_on, **accuracies, "seconds": time.perf_counter() - start}
                    scheduler.step()
                    state = {"log": [*state["log"], row], "progress": start_of(progress["epoch"] + 1)}
                    if best_of(state["log"]) is row:
                        save(best_path)
                    save(last_path)
                    write_log(log_path, state["log"])
                    print(summary(state["log"], args.epochs), flush=True)
                    if board:
                        write_scalars(board, row)
        except Interrupted as stopped:
            save(last_path)
            where = f"epoch {state['progress']['epoch']} after {state['progress']['step']} steps"
            message = f"interrupted in {where}, saved; the same command with --resume goes on from there"
            raise Interrupted(stopped.number, message) from None
        if board:
            board.close()

        best, last = best_of(state["log"]), state["log"][-1]
        if chosen_on != "test":
            last = last | evaluate(model, loaders["test"], device)[0]
            model.load_state_dict(checkpoint.load(best_path)["model"])
            best = best | evaluate(model, loaders["test"], device)[0]
        result = {name: {k: row[k] for k in ("epoch", *BRANCHES)} for name, row in (("best", best), ("last", last))}
        for name, row in result.items():
            print(f"test accuracy, {name} epoch {row['epoch']}:  {show(row, BRANCHES)}")
        write_json(result_path, {**result, "chosen_on": chosen_on, "settings": vars(args)})
    print(f"validate with: python valid.py --ckpt_path {best_path}")


def start_of(epoch):
    """The progress of an epoch of which no step is done yet: see `train_epoch`."""
    return {"epoch": epoch, "step": 0, "total": torch.zeros(3)}


def best_of(log):
    """The row of the best epoch, the first one where several are best."""
    return max(log, key=lambda row: row["fused"])


def write_log(path, log):
    write_text(path, "".join(json.dumps(row) + "\n" for row in log))


def write_skipped(path, loaders):
    """Write `split,clip,reason` of every clip that is left out."""
    rows = [(split, *clip) for split, loader in loaders.items() for clip in loader.dataset.left_out()]
    write_csv(path, [("split", "clip", "reason"), *rows])


def open_board(args, log):
    """TensorBoard's writer, with the rows of the log so far in place of what was written before."""
    from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only on demand

    folder = args.tensorboard_path or os.path.join(args.ckpt_path, "tensorboard")
    try:
        board = SummaryWriter(folder, purge_step=0)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; choose another --tensorboard_path") from None
    for row in log:
        write_scalars(board, row)
    return board


def write_scalars(board, row):
    for name, value in row.items():
        if name not in ("epoch", "split") and value is not None:
            board.add_scalar(name, value, row["epoch"])
    board.flush()


def show(values, names):
    """Values by name on one line, such as 'fused 0.9833  audio 0.9067', a dash for None."""
    return "  ".join(f"{name} {'  -   ' if values[name] is None else f'{values[name]:.4f}'}" for name in names)


def summary(log, epochs):
    """The last row of the log as a line for the terminal."""
    row, best = log[-1], best_of(log)
    return (
        f"epoch {row['epoch']:{len(str(epochs))}d}  {show(row, ('loss', 'loss_a', 'loss_v'))}"
        f"  {row['split']} accuracy: {show(row, BRANCHES)}  best {best['fused']:.4f}  {row['seconds']:.0f} s"
    )


def main(flags=None):
    args, typed = flags or parse_flags()
    if not args.train:
        validate([os.path.join(args.ckpt_path, "best.pth")], typed)
        return
    device = choose_device(args.device, args.gpu_ids)
    with distributed.processes(device):
        train(fill_defaults(args), device)


if __name__ == "__main__":
    run(partial(main, flags))
