"""Train an audio-visual classifier with Disentangled Gradient Learning (Wei, Luo, Luo; ICCV 2025; arXiv 2507.10213).

    python main_dgl.py --train --dataset CREMAD --alpha 4 --learning_rate 0.002     # again: goes on where it stopped
    python main_dgl.py --dataset CREMAD --alpha 4 --learning_rate 0.002             # evaluate its best.pth

The method is `dgl_step` below and the base class in models/fusion_modules.py: `grep -rn "DGL (" --include=*.py .`
The other training rules, by --method, are the files of methods/.
"""

import os
from argparse import Namespace
from functools import partial

from dataset import DATASETS, build_dataset, fill_defaults
from methods import build, check_flags, resolve
from utils import options
from utils.errors import InputError, run
from utils.files import looked_in
from utils.results import folder, settings
from utils.training.memory import return_large_tensors


def parse_flags():
    """The flags: (args, typed) as utils.options.parse.

    Raises:
        InputError: a flag is wrong, or contradicts another.
    """
    args, typed = options.parse(settings.training_parser())
    args = Namespace(**resolve(vars(folder.with_recorded(args))))
    check_flags(args, typed)
    options.check_tensorboard(args, typed)
    return args, typed


if __name__ == "__main__":
    flags = run(parse_flags)  # --help and wrong flags need not wait the seconds that PyTorch takes to import
    return_large_tensors()

import torch
import torch.nn.functional as F

from dataset.cache import refuse_much_damage
from dataset.leaks import warn_of_leaks
from dataset.loader import build_loader
from methods.base import Method
from models import ENCODERS
from utils.results.evaluation import BRANCHES, class_names, evaluate, held_out_loss
from utils.results.journal import Journal
from utils.training import checkpoint, distributed
from utils.training.batchnorm import refresh_batchnorm, refuse_single_values
from utils.training.device import choose_device, compile_when_run, set_precision
from utils.training.measurement import WatchedLosses
from utils.training.run import Run, best_of


def dgl_step(model, spectrogram, frames, label, alpha):
    """Forward and backward of one DGL step (paper section 3).

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


class DGL(Method):
    """Disentangled Gradient Learning, by `dgl_step`; its flag is --alpha (paper section 3)."""

    def step(self, model, spectrogram, frames, label):
        return dgl_step(model, spectrogram, frames, label, self.args.alpha)


def train_epoch(run):
    """Train from the step that `run.progress` names to the end of the epoch; leave fresh BatchNorm statistics.

    A signal raises Interrupted between two steps, with `run.progress` such that the run can be saved.

    Returns:
        the epoch's figures in training, as Run.means.

    Raises:
        InputError: a loss or a gradient is not finite.
    """
    run.begin_epoch()
    pending = None  # the step before, not counted yet: a GPU has its next work before it is asked for its figures
    try:
        for number, clips, batch in run.batches():
            with WatchedLosses() as watched:
                losses = run.method.update(run.shared.model, *batch, run.finish)
            figures = run.figures(losses, watched.hits(losses))
            if pending:
                run.count(*pending)
            pending = number, clips, figures
    finally:  # also when it is interrupted and about to be saved
        if pending:
            run.count(*pending)
    refresh_batchnorm(run.model, run.recent)
    return run.means()


def train(args, device):
    """Train until args.epochs epochs are done; write best.pth and last.pth into args.ckpt_path, `Journal` the rest.

    The best epoch is chosen on the test set, as the literature does, or with args.val_ratio on the training clips that
    it holds out; then the test set is seen once, after the last epoch.
    """
    set_precision(args.deterministic)
    chosen_on = "val" if args.val_ratio else "test"
    model, method = initial_model(args, device)
    loaders, data = load_clips(args, device, ("train", chosen_on, "test", *method.splits))
    this = Run(args, device, model, method, loaders)
    with this.opened(settings.as_of_today), Journal(this, data) as this.journal:
        with this.saved_when_interrupted():
            while this.progress["epoch"] < args.epochs:
                row = {"epoch": this.progress["epoch"], "learning_rate": this.schedule.get_last_lr()[0]}
                row |= train_epoch(this)
                accuracies, predictions = evaluate(this.model, this.loaders[chosen_on], device, this.interruption.watch)
                row |= {"split": chosen_on, **accuracies, **held_out_loss(chosen_on, predictions)}
                this.end_epoch(row)
        this.journal.finish(*test(this, chosen_on))


def load_clips(args, device, splits):
    """The loaders of these splits, {name: loader}, and the digests of their lists; what is in them is printed.

    Raises:
        InputError: too many clips are damaged, they leave BatchNorm one value, or the run in the folder had others.
    """
    with distributed.first_alone():
        datasets = {split: build_dataset(args, split) for split in dict.fromkeys(splits)}
        data = folder.digests(datasets)
        folder.refuse_other_clips(args, data)
    loaders = {split: build_loader(args, split, device, dataset=dataset) for split, dataset in datasets.items()}
    for split, loader in loaders.items():
        print(f"{args.dataset} {split}: {loader.dataset}")
    with distributed.first_alone():  # of several processes one tells why
        warn_of_leaks(*(loaders[split].dataset.clips for split in ("train", "test")))
        refuse_much_damage([loader.dataset for loader in loaders.values()], args.max_skipped)
        refuse_single_values(args, loaders["train"].dataset)
    return loaders, data


def initial_model(args, device):
    """The model that a run with these settings starts from, and its training rule -> (AVClassifier, Method)."""
    torch.manual_seed(args.random_seed)
    model, method = build(args, DATASETS[args.dataset].n_classes, prepare=True)
    model.amp = args.amp == "bf16"
    model.to(device, memory_format=torch.channels_last)  # 1.6 times as fast on the CPU
    if args.compile:
        compile_when_run([net for name, net in model.named_children() if name in ENCODERS], device)
    return model, method


def test(run, chosen_on):
    """Test a finished run's last epoch and its best one, whose weights the model has then.

    Returns:
        what result.json holds, and the best epoch's predictions, as `evaluate` returns them, with the classes' names.
    """
    loader, best, last = run.loaders["test"], best_of(run.log), run.log[-1]
    if chosen_on != "test" and last is not best:
        last = last | evaluate(run.model, loader, run.device)[0]
    with distributed.first_alone():  # the process that wrote it is through with that
        run.model.load_state_dict(checkpoint.load(run.best_path)["model"])
    accuracies, predictions = evaluate(run.model, loader, run.device)
    rows = (("best", best | accuracies), ("last", best | accuracies if last is best else last))
    result = {name: {key: row[key] for key in ("epoch", *BRANCHES)} for name, row in rows}
    result |= {"chosen_on": chosen_on, "settings": vars(run.args)}
    return result, predictions, class_names(loader.dataset.classes, DATASETS[run.args.dataset].n_classes)


def main(flags=None):
    args, typed = flags or parse_flags()
    if args.gradient_report:
        from utils.results.gradient_report import show_gradients

        show_gradients(fill_defaults(args), initial_model)
    elif args.train:
        device = choose_device(args.device, args.gpu_ids)
        with distributed.processes(device), folder.opened(fill_defaults(args)):
            if folder.is_finished(args):
                print(f"{args.ckpt_path}: finished; --overwrite begins anew")
            else:
                train(args, device)
    else:
        from valid import validate

        path = os.path.join(args.ckpt_path or folder.folder_of(fill_defaults(args)), "best.pth")
        if not os.path.exists(path):
            raise InputError(
                f"{path}: no such file{looked_in(path)}; --train trains it, valid.py evaluates any checkpoint"
            )
        validate([path], typed)


if __name__ == "__main__":
    run(partial(main, flags))
