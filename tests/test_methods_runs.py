"""Check the methods in runs: resumed to the bit, evaluated, rejected, in bfloat16, in the gradient report."""

import json
import re
import shutil
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch

import main_dgl
import valid
from analysis.gradient_report import as_table, gradient_report
from dataset import DATASETS
from engine.checkpoint import save
from engine.meter import CLIP_NORM, READ_EVERY, Meter
from methods import METHODS, Output, gblend
from models.backbone import BACKBONES
from models.weights import load_checkpoint
from tests.conftest import SMALL, SmallEncoder, data_flags, rows_of, run_here
from tests.rules import rule, small_model, write_teachers
from tests.test_dgl_step import batch
from tests.test_methods import NarrowResNet
from tests.test_resume import interrupted
from tests.torture import assert_same_run


class CornerResNet(NarrowResNet):
    """A narrow ResNet that sees a corner of the spectrogram, which takes a tenth of the time."""

    def forward(self, x):
        return super().forward(x[..., :64, :64])


RELEARN = "relearn --val_ratio 0.3 --batch_size 6 --relearn_every 1"
REMEMBERING = {  # methods, with flags that make each remember something
    "joint_uni": "joint_uni",
    "gblend": "gblend --gblend_weights 0.2,0.5,0.3",
    "agm": "agm",
    "pmr": "pmr --pmr_mu 0.1",
    "mmpareto": "mmpareto",
    "mla": "mla",
    "lfm": "lfm",
    "relearn": f"{RELEARN} --relearn_times 1",
    "umt": "umt",
    "inforeg": "inforeg --inforeg_k=-1e9",
}
RESUMED = [
    *REMEMBERING.values(),
    "dgl --fusion_method gated --alone zeros",
    "dgl --fusion_method mixer",  # dropout draws noise
    "dgl --fusion_method film --optimizer Adam",
    "visual --optimizer AdaGrad --use_video_frames 2 --modulation_starts 0",
    "joint --log_suppression",
    "dgl --backbone resnet34",
    "dgl --compile",
    "dgl --weights WEIGHTS --freeze audio",
    *(f"{name} --weights WEIGHTS --freeze visual" for name in ("joint", "mmpareto", "mla", "visual")),
    "pmr --pmr_mu 0.1 --pmr_ends 0",
    "lfm --lfm_match code",
    *(f"{name} --fusion_method mmtm" for name in ("dgl", "ogm_ge")),
    *(f"{REMEMBERING[name]} --fusion_method mmtm" for name in ("gblend", "mmpareto")),
    "pmr --pmr_mu 0.1 --freeze visual --amp bf16 --fusion_method mmtm",  # prototypes of maps; the stream behind learns
    "ogm --ogm_rule journal --ogm_alpha 0.8 --fusion_method mmtm",
    "joint_uni --joint_uni_weight 2 --fusion_method mmtm",
    "agm --agm_clip --fusion_method mmtm",
    f"{RELEARN} --relearn_times 1 --relearn_unimodal 1 --fusion_method mmtm",
    "inforeg --inforeg_k=-1e9 --inforeg_unimodal 1 --fusion_method mmtm",
]


@pytest.fixture
def flags(corpus, small):
    """Return flags of three short epochs, the last with a lower learning rate."""
    run = ["--num_workers", 0, "--epochs", 3, "--lr_decay_step", "[2]", "--learning_rate", 0.01, "--device", "cpu"]
    return ["--train", *data_flags(corpus), *SMALL, *run]


def teachers(folder, **changes):
    return write_teachers(folder, **{"classes": DATASETS["CREMAD"].classes, "n_classes": 6, **changes})


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("run", RESUMED)
def test_interrupted_in_an_epoch_resumed_to_the_bit_and_evaluated(flags, tmp_path, monkeypatch, capsys, rejected, run):
    """Check a frozen encoder too, and that other flags than the run's are rejected; files it started from may go."""
    monkeypatch.setitem(BACKBONES, "resnet18", CornerResNet if "mmtm" in run else SmallEncoder)
    monkeypatch.setitem(BACKBONES, "resnet34", SmallEncoder)
    compiled = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # spares a minute of C++
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    save(tmp_path / "weights.pth", small_model(seed=3, n_classes=6), {}, epoch=None, classes=[])
    start = load_checkpoint(tmp_path / "weights.pth")["model"]
    own = ["--method", *run.replace("WEIGHTS", str(tmp_path / "weights.pth")).split()]
    command = [*flags, *own, *(teachers(tmp_path) if run == "umt" else [])]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "whole")
    with interrupted("clip_gradients", 1, epoch=2):  # after the epoch's first update
        run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted by SIGTERM; run the same command to resume"
    saved = load_checkpoint(tmp_path / "parts" / "last.pth")
    assert saved["epoch"] == 1 and [row["epoch"] for row in saved["log"]] == [0, 1]
    error = rejected(main_dgl, *flags, "--ckpt_path", tmp_path / "parts")
    named = [word for word in own if word.startswith("--")] + ["--modality", "--num_frame"]
    assert any(f"error: {word} " in error for word in named), error
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    assert "resuming in epoch 2" in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    best, rows = read(tmp_path / "whole", "result.json")["best"], rows_of(tmp_path / "whole")
    frozen, before = run.partition("--freeze ")[2].split(" ")[0], start if "WEIGHTS" in run else saved["model"]
    for name, value in load_checkpoint(tmp_path / "whole" / "last.pth")["model"].items() if frozen else ():
        if name.startswith(f"{frozen}_net."):
            assert torch.equal(value, before[name]), name
        elif "_net." in name and name.endswith("weight"):
            assert not torch.equal(value, before[name]), name
    for row in rows:
        modules = {name.removeprefix("gradient_"): value for name, value in row.items() if "gradient_" in name}
        assert len(modules) > 2 and all((value > 0) == (name != frozen) for name, value in modules.items())
        assert ("val_loss" in row) == ("relearn_audio" in row) == ("relearn" in run)
    if "pmr" in run and "mmtm" in run:
        assert tuple(saved["method"]["prototypes"]["visual"].shape) == (6, NarrowResNet(1).dim // 4)
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    probe = ["--linear_probe"] if run == "dgl --fusion_method mmtm" else []
    run_here(valid, "--ckpt_path", tmp_path / "whole" / "best.pth", *probe, "--json", tmp_path / "valid.json")
    found, output = read(tmp_path, "valid.json"), capsys.readouterr().out
    assert {name: found[name] for name in best if name != "epoch"} == {k: v for k, v in best.items() if k != "epoch"}
    assert "test: 6 clips" in output and ("mmtm fusion" in output) == ("mmtm" in run)
    assert (found["linear_probe"] is not None) == bool(probe)


WITHOUT_ZEROS = [
    "dgl",
    "dgl --fusion_method mixer",
    "dgl --fusion_method mmtm",
    "joint --fusion_method concat",
    "joint_uni --fusion_method gated",
    "gblend --gblend_weights 0.2,0.5,0.3 --fusion_method film",
    "mmpareto --fusion_method sum",
    "inforeg --inforeg_unimodal 1 --fusion_method gated",
    "relearn --relearn_unimodal 1 --val_ratio 0.3 --fusion_method gated",
    "mla",
    "lfm",
]
REJECTED = [
    ("relearn", "--method relearn: needs --val_ratio"),
    ("relearn --val_ratio 0.3 --freeze both", "--freeze both: --method relearn changes"),
    ("umt", "--method umt: needs --umt_audio"),
    ("umt --umt_audio nowhere.pth", "--method umt: needs --umt_visual"),
    ("umt --umt_audio nowhere.pth --umt_visual nowhere.pth", "nowhere.pth: no such file"),
    ("umt --umt_audio a --umt_visual v --fusion_method mmtm", "_method mmtm: --method umt .*use concat or another"),
    ("mla --fusion_method gated", "--fusion_method gated: --method mla has its own fusion; leave it out"),
    ("mla --fusion_method mmtm", "--fusion_method mmtm: --method mla has its own fusion; leave it out"),
    ("lfm --fusion_method sum", "--fusion_method sum: --method lfm has its own fusion; leave it out"),
    ("lfm --fusion_method mmtm", "--fusion_method mmtm: --method lfm has its own fusion; leave it out"),
    ("gblend", "--method gblend: needs --gblend_runs or --gblend_weights"),
    ("gblend --gblend_weights 0.2,0.5", "--gblend_weights: needs 3 numbers"),
    ("gblend --gblend_weights 1,1,1 --gblend_runs a,b,c", "--gblend_weights: --gblend_runs sets the weights too"),
    ("gblend --gblend_runs a,b,c", "--gblend_runs a: no finished run"),
    ("joint --agm_alpha 2", "--agm_alpha: a flag of --method agm"),
    ("agm --agm_mask none", "--agm_mask.*'shared', 'passes'"),
    ("visual --freeze audio", "--freeze audio: --method visual has no audio encoder"),
    ("joint --log_suppression --fusion_method gated", "needs concat or sum fusion, not --fusion_method gated"),
    *((f"{name} --log_suppression", f"needs concat or sum fusion, not --method {name}") for name in ("mla", "lfm")),
    ("dgl --fusion_method bilinear --backbone resnet50", "34 GB"),
    *((f"{flags} --alone zeros", "--alone zeros: no effect with --method .*; leave it out") for flags in WITHOUT_ZEROS),
]


def test_every_method_is_checked_with_mmtm():
    checked = {flags.split()[0] for flags in [*RESUMED, *(row[0] for row in REJECTED)] if "mmtm" in flags}
    checked |= {"joint", "no_mgt", "no_ugt", "no_mgt+no_ugt"}  # which remember nothing; test_methods.py checks them
    assert checked == {name for name, entry in METHODS.items() if entry.modality == "full"}


@pytest.mark.parametrize(("flags_of_method", "message"), REJECTED, ids=[flags for flags, _ in REJECTED])
def test_wrong_combinations_are_rejected_before_anything_is_decoded(
    flags, tmp_path, rejected, monkeypatch, flags_of_method, message
):
    monkeypatch.setattr(main_dgl, "load_data", lambda *_: pytest.fail("clips were read"))
    error = rejected(main_dgl, *flags, "--ckpt_path", tmp_path, "--method", *flags_of_method.split())
    assert re.search(message, error), error


@pytest.mark.parametrize("method", ["dgl", "inforeg", "relearn --val_ratio 0.3", "ogm"])
def test_zeros_are_accepted_where_they_have_an_effect(method):
    flags = ["--train", "--fusion_method", "gated", "--method", *method.split()]
    assert [main_dgl.parse_args([*flags, *zeros]).alone for zeros in ([], ["--alone", "zeros"])] == ["own", "zeros"]


def test_without_a_compiler_a_line_reports_it(flags, tmp_path, rejected, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda _: lambda _: (_ for _ in ()).throw(RuntimeError("no C++ compiler")))
    error = rejected(main_dgl, *flags, "--compile", "--ckpt_path", tmp_path)
    assert "--compile: fails on this machine (no C++ compiler); leave it out" in error


def test_teachers_that_do_not_fit_are_rejected(flags, tmp_path, rejected):
    command = [*flags, "--method", "umt", "--ckpt_path", tmp_path / "run"]
    swapped = [word.replace("audio.pth", "visual.pth") for word in teachers(tmp_path)]
    assert "--umt_audio" in rejected(main_dgl, *command, *swapped)
    for changes, message in (
        ({"dataset": "AVE"}, "trained on AVE, not CREMAD"),
        ({"n_classes": 7}, "do not fit"),
        ({"classes": ["A"]}, "other classes"),
    ):
        assert re.search(f"--umt_audio.*{message}", rejected(main_dgl, *command, *teachers(tmp_path, **changes)))
    (tmp_path / "other").mkdir()
    good, other = teachers(tmp_path), teachers(tmp_path / "other", seed=5)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run_here(main_dgl, *command, *good)
    assert "other teachers" in rejected(main_dgl, *command, *other, "--resume", "--epochs", 4)
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("run", "other", "moved"))
    moved = [word.replace(str(tmp_path), str(tmp_path / "moved")) for word in good]
    run_here(main_dgl, *command, *moved, "--resume", "--epochs", 4)


def test_blending_weights_are_measured_in_three_runs(flags, tmp_path, rejected):
    held_out, found = [*flags, "--val_ratio", 0.3], {}
    for name in ("joint", "audio", "visual"):
        run_here(main_dgl, *held_out, "--method", name, "--ckpt_path", tmp_path / name)
        start, rows = read(tmp_path / name, "start.json"), rows_of(tmp_path / name)
        assert [row["epoch"] for row in rows] == [0, 1, 2] and start.keys() == {"loss", "val_loss"}
        assert 0.5 < start["loss"] / start["val_loss"] < 2
        found[name] = (start["loss"], start["val_loss"]), (rows[-1]["loss"], rows[-1]["val_loss"])
    folders = [str(tmp_path / name) for name in ("audio", "visual", "joint")]
    command = [*held_out, "--method", "gblend", "--gblend_runs", ",".join(folders), "--ckpt_path"]
    run_here(main_dgl, *command, tmp_path / "blend")
    row = rows_of(tmp_path / "blend")[-1]
    assert [row[f"gblend_{name}"] for name in found] == gblend.blending_weights(found)
    assert load_checkpoint(tmp_path / "blend" / "last.pth")["method"]["weights"] == gblend.blending_weights(found)
    assert "--random_seed was 0" in rejected(main_dgl, *command, tmp_path / "other", "--random_seed", 1)
    for wrong in (folders[:2], [*folders, folders[0]]):
        error = rejected(main_dgl, *command, tmp_path / "other", "--gblend_runs", ",".join(wrong))
        assert "give one run each of joint, audio, visual" in error


@pytest.mark.parametrize("name", REMEMBERING)
def test_in_bfloat16_gradients_are_nearly_those_of_float32(name):
    found, (inputs, label) = [], batch()
    inputs = {name: x.float() for name, x in inputs.items()}
    for amp in (True, False):
        model, method = rule(name)
        model.float().amp = amp
        taken = []
        for outputs in method.steps(model, inputs, label):
            method.adjust_gradients(model, outputs, label)
            taken += [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            model.zero_grad()
        assert all(output.loss.dtype == torch.float32 and output.loss.isfinite() for output in outputs.values())
        found.append(torch.cat(taken))
    assert found[0].dtype == torch.float32 and not torch.equal(*found)
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


APART = {"joint_uni", "gblend", "agm", "mla", "relearn", "inforeg"}  # methods whose losses the report separates


@pytest.mark.parametrize("name", REMEMBERING)
def test_gradient_report(name):
    model, method = rule(name)
    report = gradient_report(method, model, *batch())
    assert list(report) == (["L_m", "L_audio", "L_visual", "all"] if name in APART else ["all"])
    assert ("cannot be separated" in as_table(report)) == (name not in APART)
    assert all(norm > 0 for norm in report["all"].values())
    if name in ("joint_uni", "gblend", "mla"):
        assert report["L_audio"]["audio"] > 0 == report["L_audio"]["visual"] and report["L_visual"]["audio"] == 0
        assert (report["L_m"]["audio"] == 0) == (name == "mla")
    assert gradient_report(method, model, *batch()) == report  # what the method remembers is restored


def test_gradient_report_of_the_command_line(flags, capsys, monkeypatch):
    """Check that it ends in a note on PMR, and of DGL with mmtm which loss reaches which module."""
    run_here(main_dgl, "--gradient_report", *flags[1:], "--method", "pmr")
    assert capsys.readouterr().out.splitlines()[-1].startswith("the losses cannot be separated")
    monkeypatch.setitem(BACKBONES, "resnet18", CornerResNet)
    run_here(main_dgl, "--gradient_report", *flags[1:], "--fusion_method", "mmtm")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("L_")]
    reached = {loss: [cell != "0" for cell in cells] for loss, *cells in lines}
    assert reached == {name: [name == each for each in ("L_m", "L_audio", "L_visual")] for name in reached}
    assert list(reached) == ["L_m", "L_audio", "L_visual"]


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


@pytest.mark.parametrize("modality", ["full", "audio"])
def test_means_of_a_meter(modality):
    """Check the means of more steps than are read at once; the second step has two optimiser steps."""
    torch.manual_seed(0)
    model, steps = small_model(modality=modality), READ_EVERY + 5
    meter, rows = Meter(model, Steps(steps)), []
    names = ["loss", *(f"loss_{name}" for name in model.modalities), *(f"train_{name}" for name in model.branches)]
    norm_names = ["gradient_fusion", *(f"gradient_{name}" for name in model.modalities), "gradient_norm"]
    for step in range(steps):
        label = torch.randint(5, (8,))
        outputs = {branch: Output(torch.rand(()), torch.randn(8, model.n_classes)) for branch in model.branches}
        norms = 2 * CLIP_NORM * torch.rand(2 if step == 1 else 1, len(norm_names))
        for each in norms:
            meter.add_gradients(each)
        meter.add_batch(outputs, label)
        hits = [[row.argmax() == k for row, k in zip(output.logits, label, strict=True)] for output in outputs.values()]
        values = [*(output.loss for output in outputs.values()), *(sum(each) / len(each) for each in hits)]
        values += [*map(max, norms.T), sum(norm > CLIP_NORM for norm in norms[:, -1]) / len(norms)]
        rows.append(dict(zip([*names, *norm_names, "clipped"], map(float, values), strict=True)))
        if len(rows) == READ_EVERY:  # the progress bar shows the means so far
            assert meter.means()["loss"] == pytest.approx(sum(row["loss"] for row in rows) / READ_EVERY)
    assert [pytest.approx(row) for row in rows] == meter.steps
    means = meter.means()
    assert list(means) == list(rows[0])
    assert means == pytest.approx({name: sum(row[name] for row in rows) / steps for name in means})
    assert str(meter).startswith(f"loss {means['loss']:.3f}  fused {means['train_fused']:.3f}")
