"""Train an audio-visual classifier with Disentangled Gradient Learning (Wei, Luo, Luo; ICCV 2025; arXiv 2507.10213).

    python main_dgl.py --train --dataset CREMAD --alpha 4 --learning_rate 0.002 --ckpt_path ckpt/cremad
    python main_dgl.py --dataset CREMAD --ckpt_path ckpt/cremad        # evaluate its best.pth

The method is `dgl_step` below and the base class in models/fusion_modules.py: `grep -rn "DGL (" --include=*.py .`
"""

import math
import os
import time
from collections import deque
from contextlib import ExitStack
from functools import partial

from dataset import DATASETS, fill_defaults
from models import FUSION_MODULES, MODALITIES
from utils import options
from utils.errors import InputError, Interrupted, run
from utils.memory import return_large_tensors


def parse_flags():
    """The flags: (args, typed) as utils.options.parse.

    Raises:
        InputError: a flag is wrong, or contradicts another.
    """
    args, typed = options.parse(options.training_parser(tuple(DATASETS), tuple(FUSION_MODULES), MODALITIES))
    options.check_method(args, typed)
    return args, typed


if __name__ == "__main__":
    flags = run(parse_flags)  # --help and wrong flags need not wait the seconds that PyTorch takes to import
    return_large_tensors()

import torch
import torch.nn.functional as F

from dataset.cache import refuse_much_damage
from dataset.leaks import warn_of_leaks
from dataset.loader import build_loader
from models.basic_model import AVClassifier
from utils import checkpoint, distributed
from utils.baselines import ablation_step, joint_step, unimodal_step
from utils.batchnorm import refresh_batchnorm, refuse_single_values
from utils.device import choose_device, set_precision, to_device
from utils.evaluation import BRANCHES, class_names, evaluate
from utils.files import exclusive
from utils.interruption import Interruption
from utils.journal import Journal, best_of, named
from utils.measurement import WatchedLosses, gradient_norms, read_later
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


def train_epoch(model, shared, loader, optimizer, device, args, progress, interruption, journal):
    """Train from step `progress["step"]` to the end of the epoch; leave fresh BatchNorm statistics.

    `progress` is kept up to date, {"epoch", "step": steps done, "totals": (3, 3)}, so that it can be saved with the
    model when `interruption` raises Interrupted, between two steps. The totals are sums over the steps of losses
    (times clips), right answers and gradient magnitudes; `journal` shows them.

    Returns:
        {"loss": .., "loss_a": .., "loss_v": .., "train_fused": .., ...}, mean losses and accuracies per clip and, with
        args.use_tensorboard, mean gradient magnitudes per step; None for what the model lacks.

    Raises:
        InputError: a loss is not finite.
    """
    model.train()
    epoch, done = progress["epoch"], progress["step"]
    step = choose_step(args, epoch)
    recent = deque(maxlen=-(-BATCHNORM_CLIPS // args.batch_size))
    first = max(0, done - recent.maxlen - 1)  # batches before step `done` are read again for BatchNorm alone
    loader.dataset.set_epoch(epoch)
    loader.sampler.start = first
    batches = journal.watch(interruption.watch(loader), epoch, first, optimizer.param_groups[0]["lr"])
    unmeasured = torch.full((3,), float("nan"), device=device)
    pending = None  # the previous step, not counted yet: a GPU has its next work before it is asked for its figures
    try:
        for number, batch in enumerate(batches, start=first):
            spectrogram, frames, label = to_device(batch, device)
            clips = min(args.batch_size, len(loader.dataset) - number * args.batch_size)  # in all processes
            if clips == args.batch_size:
                recent.append((spectrogram, frames))
            if number < done:
                continue
            torch.manual_seed(derived_seed(args.random_seed, epoch, "noise", number))  # drawn by OGM-GE
            share = shared.model.share = distributed.share(clips)
            optimizer.zero_grad()
            with WatchedLosses() as watched:
                losses = step(shared.model, spectrogram, frames, label)
            shared.reduce_fusion()
            magnitudes = gradient_norms(model) if args.use_tensorboard else unmeasured
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=40)
            optimizer.step()
            of_all = [torch.stack(losses) * share, watched.hits(losses) * (share > 0)]
            of_all = distributed.total(torch.cat(of_all))
            figures = read_later(torch.cat([of_all, magnitudes, norm.unsqueeze(0)]))
            count_step(pending, loader, args, progress, journal)
            pending = figures, clips
    finally:  # also when it is interrupted and about to be saved
        count_step(pending, loader, args, progress, journal)
    refresh_batchnorm(model, recent)
    clips, steps = len(loader.dataset), len(loader)
    means = named(progress["totals"] / torch.tensor([[clips], [clips], [steps]]))
    return {name: mean for name, mean in means.items() if args.use_tensorboard or not name.startswith("gradient")}


def count_step(pending, loader, args, progress, journal):
    """Count the step that is pending, (its figures by `read_later`, clips) or None, in `progress`, and show it.

    Raises:
        InputError: a loss or a gradient is not finite.
    """
    if pending is None:
        return
    read, clips = pending
    *measured, norm = read()
    measured = torch.tensor(measured, dtype=torch.float64).view(3, 3)
    losses = measured[0] if args.modality == "full" else measured[0, :1]
    if not math.isfinite(norm) or not losses.isfinite().all():
        number = progress["step"]
        raise InputError(
            f"loss or gradient not finite in epoch {progress['epoch']}, step {number}: lower --learning_rate, or look "
            f"at its clips; nothing of this epoch is saved in {args.ckpt_path}; "
            f"clips {', '.join(loader.dataset.clips[i].id for i in loader.sampler.batches()[number])}"
        )
    progress["step"] += 1
    progress["totals"] += measured * torch.tensor([[clips], [1], [1]])
    journal.step(progress, measured, clips)


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
    """Train until args.epochs epochs are done; write best.pth and last.pth into args.ckpt_path, `Journal` the rest.

    The best epoch is chosen on the test set, as the literature does, or with args.val_ratio on the training clips that
    it holds out; then the test set is seen once, after the last epoch.
    """
    set_precision(args.deterministic)
    chosen_on = "val" if args.val_ratio else "test"
    loaders = {split: build_loader(args, split, device) for split in dict.fromkeys(("train", chosen_on, "test"))}
    for split, loader in loaders.items():
        print(f"{args.dataset} {split}: {loader.dataset}")
    with distributed.first_alone():  # of several processes one tells why
        warn_of_leaks(*(loaders[split].dataset.clips for split in ("train", "test")))
        refuse_much_damage([loader.dataset for loader in loaders.values()], args.max_skipped)
        refuse_single_values(args, loaders["train"].dataset)

    model = initial_model(args, device)
    shared, first = distributed.Shared(model), distributed.rank() == 0
    optimizer, scheduler = build_optimizer(model, args)
    clips = derived_seed(*(clip.id for clip in loaders["train"].dataset.clips))  # resumed on others it would go astray
    state = {"log": [], "progress": start_of(0)}  # with model, optimiser and schedule all that a run is
    best_path, last_path = (os.path.join(args.ckpt_path, name) for name in ("best.pth", "last.pth"))

    def save(path):
        epoch = state["log"][-1]["epoch"] if state["log"] else None
        schedules = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        classes = list(loaders["train"].dataset.classes)
        if first:
            checkpoint.save(path, model, vars(args), epoch=epoch, classes=classes, clips=clips, **schedules, **state)

    def find_run():
        if not os.path.exists(last_path):
            return state
        if not args.resume:
            raise InputError(f"{last_path}: a run is there; --resume goes on with it, or choose another --ckpt_path")
        saved = checkpoint.resume(last_path, vars(args), model, optimizer, scheduler)
        if saved.get("clips") != clips:
            raise InputError(f"{last_path}: of other training clips; restore them, or choose another --ckpt_path")
        progress = saved["progress"]
        print(f"resuming in epoch {progress['epoch']} after {progress['step']} steps")
        return {"log": saved["log"], "progress": progress}

    with ExitStack() as stack:
        with distributed.first_alone():  # of several processes one looks, and speaks
            if first:
                stack.enter_context(exclusive(args.ckpt_path, "--ckpt_path"))
            state = find_run()
        found = os.path.isdir(args.ckpt_path), state["progress"]["epoch"], state["progress"]["step"]
        if any(other != found for other in distributed.everyones(found)):
            raise InputError(f"{args.ckpt_path}: not the same on all machines; --ckpt_path must be on a shared disk")
        with Journal(args, loaders, **state) as journal:
            print(f"training on {device}, {len(loaders['train'])} steps an epoch, checkpoints in {args.ckpt_path}")
            try:
                with Interruption() as interruption:
                    while state["progress"]["epoch"] < args.epochs:
                        start, progress = time.perf_counter(), state["progress"]
                        row = {"epoch": progress["epoch"], "learning_rate": scheduler.get_last_lr()[0]}
                        row |= train_epoch(
                            model, shared, loaders["train"], optimizer, device, args, progress, interruption, journal
                        )
                        accuracies, _ = evaluate(model, loaders[chosen_on], device, interruption.watch)
                        row |= {"split": chosen_on, **accuracies, "seconds": time.perf_counter() - start}
                        scheduler.step()
                        state = {"log": [*state["log"], row], "progress": start_of(progress["epoch"] + 1)}
                        if best_of(state["log"]) is row:
                            save(best_path)
                        save(last_path)
                        journal.epoch(state["log"])
            except Interrupted as stopped:
                save(last_path)
                where = f"epoch {state['progress']['epoch']} after {state['progress']['step']} steps"
                message = f"interrupted in {where}, saved; the same command with --resume goes on from there"
                raise Interrupted(stopped.number, message) from None

            best, last = best_of(state["log"]), state["log"][-1]
            if chosen_on != "test":
                last = last | evaluate(model, loaders["test"], device)[0]
            with distributed.first_alone():  # the process that wrote it is through with that
                model.load_state_dict(checkpoint.load(best_path)["model"])
            accuracies, predictions = evaluate(model, loaders["test"], device)
            rows = (("best", best | accuracies), ("last", last))
            result = {name: {key: row[key] for key in ("epoch", *BRANCHES)} for name, row in rows}
            result |= {"chosen_on": chosen_on, "settings": vars(args)}
            classes = class_names(loaders["test"].dataset.classes, DATASETS[args.dataset].n_classes)
            journal.finish(state["log"], result, predictions, classes)
    print(f"validate with: python valid.py --ckpt_path {best_path}")


def initial_model(args, device):
    """The model that a run with these settings starts from."""
    torch.manual_seed(args.random_seed)
    model = AVClassifier(DATASETS[args.dataset].n_classes, args.fusion_method, args.modality)
    model.amp = args.amp == "bf16"
    return model.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on the CPU


def show_gradients(args):
    """Print which loss reaches which module with these settings, and how strongly: one batch, initial weights."""
    from utils import comparison
    from utils.gradient_report import as_table, gradient_report

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun: --gradient_report takes one process; start it with python")
    device = choose_device(args.device, args.gpu_ids)
    set_precision(args.deterministic)
    batch = to_device(next(iter(build_loader(args, "train", device))), device)
    step = choose_step(args, epoch=args.modulation_starts)
    report = gradient_report(step, initial_model(args, device).train(), *batch)
    method = comparison.label(*comparison.method_name(vars(args)))
    print(f"{method}: L2 norm of the gradient that each loss sends to each module")
    print(as_table(report))


def start_of(epoch):
    """The progress of an epoch of which no step is done yet: see `train_epoch`."""
    return {"epoch": epoch, "step": 0, "totals": torch.zeros(3, 3, dtype=torch.float64)}


def main(flags=None):
    args, typed = flags or parse_flags()
    if args.gradient_report:
        show_gradients(fill_defaults(args))
    elif args.train:
        device = choose_device(args.device, args.gpu_ids)
        with distributed.processes(device):
            train(fill_defaults(args), device)
    else:
        validate([os.path.join(args.ckpt_path, "best.pth")], typed)


if __name__ == "__main__":
    run(partial(main, flags))
