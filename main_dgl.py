"""Train an audio-visual classifier with Disentangled Gradient Learning (Wei, Luo, Luo; ICCV 2025; arXiv 2507.10213).

    python main_dgl.py --train --dataset CREMAD --alpha 4 --learning_rate 0.002     # the same command again resumes
    python main_dgl.py --dataset CREMAD --alpha 4 --learning_rate 0.002             # evaluate its best.pth

The method is `dgl_step` below and the base class in models/fusion_modules.py: `grep -rn "DGL (" --include=*.py .`
The other methods, by --method, are the files of methods/.
"""

import os
import time
from collections import deque

from analysis.gradient_report import show_gradients
from dataset.loader import Data
from engine.batchnorm import batches_kept, check_batch_size, refresh_batchnorm
from engine.build import build, build_optimizer
from engine.checkpoint import best_of, load_best, resume, save_epoch
from engine.device import choose_device, return_freed_memory, set_precision
from engine.distributed import processes
from engine.evaluation import class_names, evaluate, evaluate_epoch
from engine.folder import check_data, folder_of, is_finished, opened
from engine.gradients import average_gradients, clip_gradients
from engine.log import RunLog
from engine.meter import Meter, batches
from engine.settings import parse_training
from engine.suppression import measure_suppression
from methods import METHODS
from methods.base import Method, score
from utils.errors import InputError, run
from utils.files import looked_in
from utils.processes import first_process


def dgl_step(model, inputs, label, alpha):
    """Run forward and backward of one DGL step (paper eq. 9 to 15, Algorithm 1), for any number of modalities.

    Leaves in `.grad`: encoders alpha * dL_u, fusion module dL_m. The caller zeroes, clips and steps. The problems share
    no graph, so each encoder's activations are freed before the next encoder runs.

    Args:
        model: AVClassifier, or any model with `modalities`, `encode`, `encoder_parameters` and a `fusion_module` with
            `forward`, which detaches, and `alone`.
        inputs: {modality: tensor} as `model.encode` takes them.
        label: (B,), class numbers.
        alpha: weight of the unimodal losses.

    Returns:
        {branch: Output(loss, logits)}, "fused" and every modality.
    """
    fusion, features, alone = model.fusion_module, {}, {}
    for name in model.modalities:
        features[name] = model.encode(name, inputs[name])  # (B, D)
        # DGL (1): unimodal regularisation, the fusion module's own weights score each modality alone
        alone[name] = score(fusion.alone(name, features[name]), label)
        # DGL (3): the unimodal gradient ends in its encoder, the fusion module gets none of it
        (alpha * alone[name].loss).backward(inputs=model.encoder_parameters(name))
    fused = score(fusion(features), label)  # the fusion module detaches the features: key point 2
    fused.loss.backward()  # the encoders' graphs are freed: if the features were not detached, this would raise
    return {"fused": fused, **alone}


class DGL(Method):
    """Disentangled Gradient Learning, by `dgl_step`; its flag is --alpha (paper section 3.2)."""

    def step(self, model, inputs, label):
        return dgl_step(model, inputs, label, self.settings.alpha)


METHODS["dgl"].rule = DGL


def train_epoch(model, method, loader, optimizer, device):
    """Train one epoch and leave fresh BatchNorm statistics; return the Meter with what was measured.

    Raises:
        InputError: a loss or a gradient is not finite.
    """
    model.train()
    meter = Meter(model, loader, method.settings.log_suppression)
    recent = deque(maxlen=batches_kept(loader.sampler.size))
    for inputs, label in batches(loader, device, meter):
        for outputs in method.steps(model, inputs, label):  # forward and backward; once, for MLA once per modality
            average_gradients(model)  # over processes; nothing with one
            method.adjust_gradients(model, outputs, label)
            meter.add_gradients(clip_gradients(model))
            optimizer.step()
            optimizer.zero_grad()
        meter.add_batch(outputs, label)  # on the device; read now and then
        recent.append(inputs)
    refresh_batchnorm(model, recent)
    return meter


def train(settings, device):
    """Train until settings.epochs epochs are done; write checkpoints, log and result into settings.ckpt_path.

    The best epoch is chosen on the test set, as in the literature, or with --val_ratio on held-out training clips.
    """
    set_precision(settings.deterministic)
    model, method = build(settings, device)
    data = load_data(settings, method, device)
    optimizer, scheduler = build_optimizer(model, settings)
    log = RunLog(settings, data, resume(settings, model, method, optimizer, scheduler, data.train.dataset))
    log.start(model, data, device)
    for epoch in range(len(log.rows), settings.epochs):
        start, rate = time.perf_counter(), scheduler.get_last_lr()[0]
        data.set_epoch(epoch)
        method.epoch = epoch
        method.begin_epoch(epoch, model, data.loaders, device)
        meter = train_epoch(model, method, data.train, optimizer, device)
        row = {"epoch": epoch, "learning_rate": rate, **meter.means(), **method.row()}
        row |= evaluate_epoch(model, data, device)
        if settings.log_suppression:
            row |= measure_suppression(model, data.loaders["plain"], device)
        scheduler.step()
        log.add(row | {"seconds": time.perf_counter() - start}, meter.steps)
        save_epoch(settings, model, method, optimizer, scheduler, data.train.dataset, log.rows)
    log.finish(*test(settings, model, data, log.rows, device))


def load_data(settings, method, device):
    """Return the Data of a run: its loaders, for what the method reads too.

    Raises:
        InputError: lists or folders are missing, clips are damaged, or the run in the folder had other clips.
    """
    with first_process():  # of several processes one reports
        data = Data(settings, (*method.splits, "plain") if settings.log_suppression else method.splits)
        check_data(settings, data.description)
    data.load(device)
    with first_process():
        check_batch_size(settings, data.train)
    return data


def test(settings, model, data, rows, device):
    """Test a finished run's last epoch and its best one, whose weights the model has afterwards.

    Returns:
        what result.json holds; the best epoch's predictions as `evaluate` returns them; the names of the classes.
    """
    best, last = best_of(rows), rows[-1]
    if data.chosen_on != "test" and last is not best:
        last = last | evaluate(model, data.test, device)[0]
    load_best(settings, model)
    accuracies, predictions = evaluate(model, data.test, device)
    best, last = best | accuracies, best | accuracies if last is best else last
    result = {
        name: {key: row[key] for key in ("epoch", *model.branches)} for name, row in (("best", best), ("last", last))
    }
    names = class_names(data.test.dataset.classes, predictions["fused"].shape[1])
    return result | {"chosen_on": data.chosen_on, "settings": vars(settings)}, predictions, names


def parse_args(argv=None):
    """Return the settings of a command line, by default of this process: a Namespace, complete.

    Raises:
        InputError: a flag is wrong, or contradicts another.
    """
    return parse_training(argv)[0]


def main():
    settings, typed = parse_training()
    if settings.gradient_report:
        show_gradients(settings)
    elif settings.train:
        return_freed_memory()
        device = choose_device(settings.device, settings.gpu_ids)
        with processes(device), opened(settings):
            if is_finished(settings):
                check_data(settings, Data(settings).description)
                print(f"{settings.ckpt_path}: finished; --overwrite starts again")
            else:
                train(settings, device)
    else:
        path = os.path.join(settings.ckpt_path or folder_of(settings), "best.pth")
        if not os.path.exists(path):
            raise InputError(
                f"{path}: no such file{looked_in(path)}; --train trains it, valid.py evaluates any checkpoint"
            )
        from valid import validate  # and scikit-learn, 85 MB that training does without

        validate([path], typed)


if __name__ == "__main__":
    run(main)
