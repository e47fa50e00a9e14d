"""Train an audio-visual classifier with Disentangled Gradient Learning (Wei, Luo, Luo; ICCV 2025; arXiv 2507.10213).

    python main_dgl.py --train --dataset CREMAD --alpha 4 --learning_rate 0.002     # the same command again resumes
    python main_dgl.py --dataset CREMAD --alpha 4 --learning_rate 0.002             # evaluate its best.pth

The method is `dgl_step` below and the base class in models/fusion_modules.py: `grep -rn "DGL (" --include=*.py .`
The other values of --method are in methods/, one file each.
"""

import os
import time
from collections import deque

from analysis.gradient_report import show_gradients
from dataset.loader import Data
from engine.batchnorm import batches_to_refresh, check_batch_size, refresh_batchnorm
from engine.build import build, build_optimizer
from engine.checkpoint import best_of, load_best, resume, save_epoch
from engine.device import choose_device, return_freed_memory, set_precision
from engine.distributed import processes
from engine.evaluation import class_names, evaluate, evaluate_epoch
from engine.folder import check_data, folder_of, is_finished, run_folder
from engine.gradients import average_gradients, clip_gradients
from engine.log import RunLog
from engine.meter import Meter, batches
from engine.settings import parse_training
from engine.suppression import measure_suppression
from methods import METHODS
from methods.base import Method, score
from utils.errors import InputError, run_script
from utils.files import folder_hint
from utils.processes import first_process


def dgl_step(model, inputs, label, alpha):
    """Run the forward and backward passes of one DGL step (paper eq. 9 to 15, Algorithm 1).

    Afterwards `.grad` is alpha * dL_u in the encoders and dL_m in the fusion module, for any number of modalities. The
    caller zeroes and clips the gradients and steps the optimiser. L_u and L_m share no graph, so each encoder's
    activations are freed before the next encoder runs.

    Args:
        model: AVClassifier, or any model with `modalities`, `encode`, `encoder_parameters` and a `fusion_module`. The
            fusion module has `alone`, and a `forward` that detaches the features.
        inputs: {modality: tensor} as `model.encode` takes them.
        label: (B,), class numbers.
        alpha: weight of the unimodal losses.

    Returns:
        {branch: Output(loss, logits)} for "fused" and every modality.
    """
    fusion, features, alone = model.fusion_module, {}, {}
    for name in model.modalities:
        features[name] = model.encode(name, inputs[name])  # (B, D)
        # DGL (1): unimodal regularisation: the fusion module's own weights score each modality alone
        alone[name] = score(fusion.alone(name, features[name]), label)
        # DGL (3): unimodal gradient truncation: the gradient reaches the encoder, not the fusion module
        (alpha * alone[name].loss).backward(inputs=model.encoder_parameters(name))
    fused = score(fusion(features), label)  # the fusion module detaches the features: part (2) of DGL
    fused.loss.backward()  # raises if the features are not detached, because the encoders' graphs are freed
    return {"fused": fused, **alone}


class DGL(Method):
    """Disentangled Gradient Learning (paper section 3.2), trained by `dgl_step`. Its flag is --alpha."""

    def step(self, model, inputs, label):
        return dgl_step(model, inputs, label, self.settings.alpha)


METHODS["dgl"].method_class = DGL


def train_epoch(model, method, loader, optimizer, device):
    """Train one epoch, refresh the BatchNorm statistics, and return the Meter of the epoch.

    Raises:
        InputError: a loss or a gradient is not finite.
    """
    model.train()
    meter = Meter(model, loader, method.settings.log_suppression)
    last_inputs = deque(maxlen=batches_to_refresh(loader.sampler.size))
    for inputs, label in batches(loader, device, meter):
        for outputs in method.steps(model, inputs, label):  # one optimiser step per batch; MLA takes one per modality
            average_gradients(model)  # over processes; no effect with one
            method.adjust_gradients(model, outputs, label)
            meter.add_gradients(clip_gradients(model))
            optimizer.step()
            optimizer.zero_grad()
        meter.add_batch(outputs, label)  # its values stay on the device until the meter reads them
        last_inputs.append(inputs)
    refresh_batchnorm(model, last_inputs)
    return meter


def train(settings, device):
    """Train until settings.epochs epochs are done, and write checkpoints, log and result into settings.ckpt_path.

    The best epoch is chosen on the test set, as in the literature. With --val_ratio it is chosen on held-out training
    clips.
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
    """Return the Data of a run, including the splits that only the method reads.

    Raises:
        InputError: lists or folders are missing, clips are damaged, or the run in the folder had other clips.
    """
    with first_process():  # only one process reports an error
        data = Data(settings, (*method.splits, "plain") if settings.log_suppression else method.splits)
        check_data(settings, data.description)
    data.load(device)
    with first_process():
        check_batch_size(settings, data.train)
    return data


def test(settings, model, data, rows, device):
    """Test the last and the best epoch of a finished run, and leave the best epoch's weights in the model.

    Returns:
        (result, predictions, names): the content of result.json; the best epoch's predictions, as `evaluate` returns
        them; the class names.
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
    """Return the complete settings of a command line, by default this process's, as a Namespace.

    Raises:
        InputError: a flag is wrong or contradicts another flag.
    """
    return parse_training(argv)[0]


def main():
    settings, typed = parse_training()
    if settings.gradient_report:
        show_gradients(settings)
    elif settings.train:
        return_freed_memory()
        device = choose_device(settings.device, settings.gpu_ids)
        with processes(device), run_folder(settings):
            if is_finished(settings):
                check_data(settings, Data(settings).description)
                print(f"{settings.ckpt_path}: this run is finished; use --overwrite to train it again")
            else:
                train(settings, device)
    else:
        path = os.path.join(settings.ckpt_path or folder_of(settings), "best.pth")
        if not os.path.exists(path):
            raise InputError(
                f"{path}: no such file{folder_hint(path)}; add --train to train the model, or evaluate another "
                "checkpoint with valid.py"
            )
        from valid import validate  # here, because it loads scikit-learn: 85 MB that training does not need

        validate([path], typed | {"gpu_ids": typed.get("gpu_ids", ())[:1]})  # one process evaluates


if __name__ == "__main__":
    run_script(main)
