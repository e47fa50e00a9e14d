"""Check the methods in runs: resumed to the bit, evaluated, rejected, in bfloat16, in the gradient report."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import main_dgl
import valid
from analysis.gradient_report import as_table, gradient_report
from dataset import DATASETS
from engine.meter import CLIP_NORM, READ_EVERY, Meter
from methods import METHODS, Output, gblend
from models.weights import load_checkpoint
from tests.conftest import SMALL, data_flags, method_of, run_here
from tests.rules import NEEDS, rule, small_model, write_teachers
from tests.test_dgl_step import batch
from tests.torture import assert_same_run
from utils.errors import InputError

RUNS = {  # with flags that make each method remember something
    "joint_uni": [],
    "gblend": NEEDS["gblend"],
    "agm": [],
    "pmr": ["--pmr_mu", 0.1],
    "mmpareto": [],
    "mla": [],
    "lfm": [],
    "relearn": ["--val_ratio", 0.3, "--batch_size", 6, "--relearn_every", 1, "--relearn_times", 1],
    "umt": [],
    "inforeg": ["--inforeg_k=-1e9"],
}
RESUMED = {name: [name, *flags] for name, flags in RUNS.items()} | {
    "dgl-zeros": ["dgl", "--fusion_method", "gated", "--alone", "zeros"],
    "dgl-mixer": ["dgl", "--fusion_method", "mixer"],  # dropout draws noise
    "joint_uni-weight": ["joint_uni", "--joint_uni_weight", 2],
    "ogm-journal": ["ogm", "--ogm_rule", "journal", "--ogm_alpha", 0.8],
    "agm-clip": ["agm", "--agm_clip"],
    "pmr-ends": ["pmr", "--pmr_mu", 0.1, "--pmr_ends", 0],
    "lfm-code": ["lfm", "--lfm_match", "code"],
    "relearn-unimodal": ["relearn", *RUNS["relearn"], "--relearn_unimodal", 1],
}


@pytest.fixture
def flags(corpus, small):
    """Return flags of three short epochs, the last with a lower learning rate."""
    run = ["--num_workers", 0, "--epochs", 3, "--lr_decay_step", "[2]", "--learning_rate", 0.01, "--device", "cpu"]
    return ["--train", *data_flags(corpus), *SMALL, *run]


def teachers(folder, **changes):
    return write_teachers(folder, **{"classes": DATASETS["CREMAD"].classes, "n_classes": 6, **changes})


def rejected(capsys, *arguments):
    """Run main_dgl.py, which reports an error -> its line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, *arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1, error
    return error


def interrupt_in_epoch(number, patch):
    """Send SIGTERM to this process in an epoch, after its first update of the weights."""
    train_epoch, clip, calls = main_dgl.train_epoch, main_dgl.clip_gradients, []

    def train(model, method, *arguments):
        if method.epoch == number:
            patch.setattr(main_dgl, "clip_gradients", kill)
        return train_epoch(model, method, *arguments)

    def kill(model):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return clip(model)

    patch.setattr(main_dgl, "train_epoch", train)


@pytest.mark.parametrize("name", RESUMED)
def test_interrupted_in_an_epoch_resumed_to_the_bit_and_evaluated(flags, tmp_path, monkeypatch, capsys, name):
    command = [*flags, "--method", *RESUMED[name], *(teachers(tmp_path) if name == "umt" else [])]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        interrupt_in_epoch(2, patch)
        run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    assert end.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted by SIGTERM; run the same command to resume"
    saved = load_checkpoint(tmp_path / "parts" / "last.pth")
    assert saved["epoch"] == 1 and [row["epoch"] for row in saved["log"]] == [0, 1]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    assert "resuming in epoch 2" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for path in tmp_path.glob("*.pth"):
        path.unlink()  # evaluation needs no teachers
    run_here(valid, "--ckpt_path", tmp_path / "whole" / "best.pth", "--json", tmp_path / "valid.json")
    best = json.loads((tmp_path / "whole" / "result.json").read_text())["best"]
    assert json.loads((tmp_path / "valid.json").read_text())["fused"] == best["fused"]
    row = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert ("val_loss" in row) == ("relearn_audio" in row) == (name in ("relearn", "relearn-unimodal"))


@pytest.mark.parametrize(
    ("flags_of_method", "words"),
    [
        (["relearn"], ["--method relearn", "--val_ratio"]),
        (["umt"], ["--method umt", "--umt_audio"]),
        (["umt", "--umt_audio", "nowhere.pth"], ["--umt_visual"]),
        (["umt", "--umt_audio", "nowhere.pth", "--umt_visual", "nowhere.pth"], ["nowhere.pth", "no such file"]),
        (["mla", "--fusion_method", "gated"], ["--fusion_method gated", "mla"]),
        (["lfm", "--fusion_method", "sum"], ["--fusion_method sum", "lfm"]),
        (["gblend"], ["--gblend_runs", "--gblend_weights"]),
        (["gblend", "--gblend_weights", "0.2,0.5"], ["--gblend_weights", "3 numbers"]),
        (["gblend", "--gblend_weights", "1,1,1", "--gblend_runs", "a,b,c"], ["--gblend_weights", "--gblend_runs"]),
        (["gblend", "--gblend_runs", "a,b,c"], ["--gblend_runs a", "no finished run"]),
        (["joint", "--agm_alpha", "2"], ["--agm_alpha", "of --method agm"]),
        (["agm", "--agm_mask", "none"], ["--agm_mask", "'shared', 'passes'"]),
    ],
)
def test_wrong_combinations_are_rejected_before_anything_is_decoded(
    flags, tmp_path, capsys, monkeypatch, flags_of_method, words
):
    monkeypatch.setattr(main_dgl, "load_data", lambda *_: pytest.fail("clips were read"))
    error = rejected(capsys, *flags, "--ckpt_path", tmp_path, "--method", *flags_of_method)
    assert all(word in error for word in words), error


def test_teachers_that_do_not_fit_are_rejected(flags, tmp_path, capsys, monkeypatch):
    command = [*flags, "--method", "umt", "--ckpt_path", tmp_path / "run"]
    swapped = [word.replace("audio.pth", "visual.pth") for word in teachers(tmp_path)]
    assert "--umt_audio" in rejected(capsys, *command, *swapped)
    for changes, words in (
        ({"dataset": "AVE"}, ["--umt_audio", "of AVE, not CREMAD"]),
        ({"n_classes": 7}, ["--umt_audio", "do not fit"]),
        ({"classes": ["A"]}, ["--umt_audio", "other classes"]),
    ):
        error = rejected(capsys, *command, *teachers(tmp_path, **changes))
        assert all(word in error for word in words), error
    (tmp_path / "other").mkdir()
    good, other = teachers(tmp_path), teachers(tmp_path / "other", seed=5)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run_here(main_dgl, *command, *good)
    assert "other teachers" in rejected(capsys, *command, *other, "--resume", "--epochs", 4)
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("run", "other", "moved"))
    moved = [word.replace(str(tmp_path), str(tmp_path / "moved")) for word in good]
    run_here(main_dgl, *command, *moved, "--resume", "--epochs", 4)


def test_blending_weights_are_measured_in_three_runs(flags, tmp_path, capsys):
    held_out = [*flags, "--val_ratio", 0.3]
    for name in ("visual", "joint", "audio"):
        run_here(main_dgl, *held_out, "--method", name, "--ckpt_path", tmp_path / name)
    folders = [str(tmp_path / name) for name in ("audio", "visual", "joint")]
    found = {}
    for name in ("joint", "audio", "visual"):
        start = json.loads((tmp_path / name / "start.json").read_text())
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [0, 1, 2] and start.keys() == {"loss", "val_loss"}
        assert 0.5 < start["loss"] / start["val_loss"] < 2
        found[name] = (start["loss"], start["val_loss"]), (rows[-1]["loss"], rows[-1]["val_loss"])
    command = ["--method", "gblend", "--gblend_runs", ",".join(folders), "--ckpt_path", tmp_path / "blend"]
    run_here(main_dgl, *flags, "--val_ratio", 0.3, *command)
    row = json.loads((tmp_path / "blend" / "log.jsonl").read_text().splitlines()[-1])
    assert [row[f"gblend_{name}"] for name in found] == gblend.blended(found)
    assert load_checkpoint(tmp_path / "blend" / "last.pth")["method"]["weights"] == gblend.blended(found)
    command += ["--ckpt_path", tmp_path / "other"]
    error = rejected(capsys, *held_out, "--random_seed", 1, *command)
    assert "--random_seed was 0" in error
    twice = ["--gblend_runs", ",".join(folders[:2] * 2)]
    assert "of audio, visual" in rejected(capsys, *held_out, *command, *twice)


@pytest.mark.parametrize("name", RUNS)
def test_in_bfloat16_gradients_are_nearly_those_of_float32(name):
    flags, found = ["--val_ratio", 0.3] if name == "relearn" else [], []
    inputs, label = batch()
    inputs = {name: x.float() for name, x in inputs.items()}
    for amp in (True, False):
        model, method = rule(name, *flags)
        model.float().amp = amp
        taken = []
        for outputs in method.steps(model, inputs, label):
            method.adjust_gradients(model, outputs, label)
            taken.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            model.zero_grad()
        assert all(output.loss.dtype == torch.float32 and output.loss.isfinite() for output in outputs.values())
        found.append(torch.cat(taken))
    assert found[0].dtype == torch.float32 and not torch.equal(*found)
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


APART = {"joint_uni", "gblend", "agm", "mla", "relearn", "inforeg"}  # methods whose losses the report tells apart


@pytest.mark.parametrize("name", RUNS)
def test_gradient_report(name):
    model, method = rule(name, *(["--val_ratio", 0.3] if name == "relearn" else []))
    report = gradient_report(method, model, *batch())
    assert list(report) == (["L_m", "L_audio", "L_visual", "all"] if name in APART else ["all"])
    assert ("cannot be told apart" in as_table(report)) == (name not in APART)
    assert all(norm > 0 for norm in report["all"].values())
    if name in ("joint_uni", "gblend", "mla"):
        assert report["L_audio"]["audio"] > 0 == report["L_audio"]["visual"] and report["L_visual"]["audio"] == 0
        assert (report["L_m"]["audio"] == 0) == (name == "mla")
    again = gradient_report(method, model, *batch())
    assert again == report  # what the method remembers is restored


def test_gradient_report_of_the_command_line(flags, capsys):
    run_here(main_dgl, "--gradient_report", *flags[1:], "--method", "pmr")
    assert capsys.readouterr().out.splitlines()[-1].startswith("the losses cannot be told apart")


@pytest.mark.parametrize("name", METHODS)
def test_logits_of_a_branch_are_those_of_its_loss(name):
    if METHODS[name].modality == "full":
        model, method = rule(name, *(["--val_ratio", 0.3] if name == "relearn" else []))
    else:
        size = {"inputs": {"text": 1}} if name == "text" else {}
        model = small_model(modality=name, **size).double().train()
        method = method_of(model, "--method", name)
    inputs, label = batch()
    inputs["text"] = inputs["audio"]
    *_, outputs = method.steps(model, inputs, label)
    assert list(outputs) == list(model.branches)
    for output in outputs.values():
        torch.testing.assert_close(F.cross_entropy(output.logits, label), output.loss)
    if name == "agm":  # its unimodal logits are Shapley values, which add up to the fused ones
        torch.testing.assert_close(outputs["audio"].logits + outputs["visual"].logits, outputs["fused"].logits)
    for branch, logits in model(inputs).items():
        if name != "agm" or branch == "fused":
            torch.testing.assert_close(outputs[branch].logits, logits)


class Steps:
    """A training loader of so many steps, as Meter sees one; each has the two clips `a` and `b` with its number."""

    def __init__(self, steps):
        self.steps, self.sampler = steps, self
        clips = [SimpleNamespace(id=f"{letter}{step}") for step in range(steps) for letter in "ab"]
        self.dataset = SimpleNamespace(clips=clips, epoch=6)

    def __len__(self):
        return self.steps

    def batches(self):
        return [[2 * step, 2 * step + 1] for step in range(self.steps)]


def random_outputs(model, label):
    """Return outputs whose losses do not belong to their logits."""
    shape = len(label), model.n_classes
    return {branch: Output(torch.rand(()), torch.randn(shape)) for branch in model.branches}


@pytest.mark.parametrize("modality", ["full", "audio"])
def test_means_of_a_meter(modality):
    """Check the means of more steps than are read at once; the second step has two optimiser steps."""
    torch.manual_seed(0)
    model, steps = small_model(modality=modality), READ_EVERY + 5
    meter, rows = Meter(model, Steps(steps)), []
    norm_names = ["gradient_fusion", *(f"gradient_{name}" for name in model.modalities), "gradient_norm"]
    for step in range(steps):
        label = torch.randint(5, (8,))
        outputs = random_outputs(model, label)
        norms = 2 * CLIP_NORM * torch.rand(2 if step == 1 else 1, len(norm_names))
        for each in norms:
            meter.add_gradients(each)
        meter.add_batch(outputs, label)
        row = {"loss" if branch == "fused" else f"loss_{branch}": outputs[branch].loss for branch in outputs}
        for branch, output in outputs.items():
            hits = [logits.argmax() == k for logits, k in zip(output.logits, label, strict=True)]
            row[f"train_{branch}"] = sum(hits) / len(hits)
        row |= {name: max(column) for name, column in zip(norm_names, norms.T, strict=True)}
        row["clipped"] = sum(norm > CLIP_NORM for norm in norms[:, -1]) / len(norms)
        rows.append({name: float(value) for name, value in row.items()})
        if len(rows) == READ_EVERY:  # the progress bar shows the means so far
            assert meter.means()["loss"] == pytest.approx(sum(row["loss"] for row in rows) / READ_EVERY)
    assert [{name: pytest.approx(value) for name, value in row.items()} for row in rows] == meter.steps
    means = meter.means()
    assert list(means) == list(rows[0])
    for name, value in means.items():
        assert value == pytest.approx(sum(row[name] for row in rows) / steps), name
    assert str(meter).startswith(f"loss {means['loss']:.3f}  fused {means['train_fused']:.3f}")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_meter_reports_divergence(what):
    model, label = small_model(), torch.zeros(8, dtype=torch.int64)
    meter = Meter(model, Steps(3))
    with pytest.raises(InputError, match="not finite in epoch 6, step 1: .*; clips a1, b1"):
        for step in range(3):
            outputs, norms = random_outputs(model, label), torch.ones(4)
            if step == 1 and what == "loss":
                outputs["visual"] = outputs["visual"]._replace(loss=torch.tensor(math.nan))
            elif step == 1:
                norms[1] = math.inf
            meter.add_gradients(norms)
            meter.add_batch(outputs, label)
