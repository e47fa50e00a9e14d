"""The training rules in runs: resumed to the bit, evaluated, refused, in bfloat16, in the gradient report."""

import json
import os
import shutil
import signal

import pytest
import torch

import main_dgl
import valid
from dataset import DATASETS
from methods import gblend
from tests.conftest import SMALL, data_flags, run_here
from tests.rules import NEEDS, rule, write_teachers
from tests.test_dgl_step import batch
from tests.torture import assert_same_run
from utils.results.gradient_report import as_table, gradient_report
from utils.training import checkpoint
from utils.training.measurement import WatchedLosses
from utils.training.run import Run

RUNS = {  # with flags that make each rule remember something
    "joint_uni": [],
    "gblend": NEEDS["gblend"],
    "agm": [],
    "pmr": ["--pmr_mu", 0.1],
    "mmpareto": [],
    "mla": [],
    "lfm": [],
    "relearn": ["--val_ratio", 0.3, "--relearn_every", 1, "--relearn_times", 1],
    "umt": [],
    "inforeg": ["--inforeg_k=-1e9"],
}


@pytest.fixture
def flags(corpus, small):
    """Flags of three short epochs, the last with a lower learning rate."""
    run = ["--num_workers", 0, "--epochs", 3, "--lr_decay_step", "[2]", "--learning_rate", 0.01, "--device", "cpu"]
    return ["--train", *data_flags(corpus), *SMALL, *run]


def teachers(folder, **changes):
    return write_teachers(folder, **{"classes": DATASETS["CREMAD"].index.classes, "n_classes": 6, **changes})


def refused(capsys, *arguments):
    """Run main_dgl.py, which refuses -> the line that it says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, *arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1, error
    return error


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_in_an_epoch_resumed_to_the_bit_and_evaluated(flags, tmp_path, monkeypatch, name):
    command = [*flags, "--method", name, *RUNS[name], *(teachers(tmp_path) if name == "umt" else [])]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "whole")
    finish, sent = Run.finish, []

    def interrupt(run):
        finish(run)
        if run.progress["epoch"] == 2 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "finish", interrupt)
        run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    saved = checkpoint.load(tmp_path / "parts" / "last.pth")
    assert saved["progress"]["epoch"] == 2 and saved["progress"]["step"] == 1
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for path in tmp_path.glob("*.pth"):
        path.unlink()  # teachers are not asked for to evaluate
    run_here(valid, "--ckpt_path", tmp_path / "whole" / "best.pth", "--json", tmp_path / "valid.json")
    best = json.loads((tmp_path / "whole" / "result.json").read_text())["best"]
    assert json.loads((tmp_path / "valid.json").read_text())["fused"] == best["fused"]
    row = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert ("val_loss" in row) == ("relearn_audio" in row) == (name == "relearn")


def test_interrupted_between_what_begins_an_epoch_and_its_first_step(flags, tmp_path, monkeypatch):
    """Prototypes are made once an epoch, however often it is begun."""
    command = [*flags, "--method", "pmr"]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "whole")
    begin = Run.begin_epoch

    def interrupt(run):
        begin(run)
        if run.progress["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Run, "begin_epoch", interrupt)
        run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    assert checkpoint.load(tmp_path / "parts" / "last.pth")["progress"]["step"] == 0
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


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
        (["gblend", "--gblend_weights", "0.2,0.5"], ["--gblend_weights", "three"]),
        (["gblend", "--gblend_weights", "1,1,1", "--gblend_runs", "a,b,c"], ["--gblend_weights", "--gblend_runs"]),
        (["gblend", "--gblend_runs", "a,b,c"], ["--gblend_runs a", "no finished run"]),
        (["joint", "--agm_alpha", "2"], ["--agm_alpha", "of --method agm"]),
        (["agm", "--agm_mask", "none"], ["--agm_mask", "shared, passes"]),
    ],
)
def test_wrong_combinations_are_refused_before_anything_is_decoded(
    flags, tmp_path, capsys, monkeypatch, flags_of_method, words
):
    monkeypatch.setattr(main_dgl, "build_loader", lambda *_: pytest.fail("clips were read"))
    error = refused(capsys, *flags, "--ckpt_path", tmp_path, "--method", *flags_of_method)
    assert all(word in error for word in words), error


def test_teachers_that_do_not_fit_are_refused(flags, tmp_path, capsys, monkeypatch):
    command = [*flags, "--method", "umt", "--ckpt_path", tmp_path / "run"]
    swapped = [word.replace("audio.pth", "visual.pth") for word in teachers(tmp_path)]
    assert "--umt_audio" in refused(capsys, *command, *swapped)
    for changes, words in (
        ({"dataset": "AVE"}, ["--umt_audio", "of AVE, not CREMAD"]),
        ({"n_classes": 7}, ["--umt_audio", "do not fit"]),
        ({"classes": ["A"]}, ["--umt_audio", "other classes"]),
    ):
        error = refused(capsys, *command, *teachers(tmp_path, **changes))
        assert all(word in error for word in words), error
    (tmp_path / "other").mkdir()
    good, other = teachers(tmp_path), teachers(tmp_path / "other", seed=5)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run_here(main_dgl, *command, *good)
    assert "other teachers" in refused(capsys, *command, *other, "--resume", "--epochs", 4)
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("run", "other", "moved"))
    moved = [word.replace(str(tmp_path), str(tmp_path / "moved")) for word in good]
    run_here(main_dgl, *command, *moved, "--resume", "--epochs", 4)


def test_blending_weights_are_measured_in_three_runs(flags, tmp_path, capsys):
    held_out = [*flags, "--val_ratio", 0.3]
    for name in ("visual", "joint", "audio"):
        run_here(main_dgl, *held_out, "--method", name, "--ckpt_path", tmp_path / name)
    folders = [str(tmp_path / name) for name in ("audio", "visual", "joint")]
    found = {}
    for name in gblend.RUNS:
        start = json.loads((tmp_path / name / "start.json").read_text())
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [0, 1, 2] and start.keys() == {"loss", "val_loss"}
        assert 0.5 < start["loss"] / start["val_loss"] < 2
        found[name] = (start["loss"], start["val_loss"]), (rows[-1]["loss"], rows[-1]["val_loss"])
    command = ["--method", "gblend", "--gblend_runs", ",".join(folders), "--ckpt_path", tmp_path / "blend"]
    run_here(main_dgl, *flags, "--val_ratio", 0.3, *command)
    settings = json.loads((tmp_path / "blend" / "result.json").read_text())["settings"]
    assert settings["gblend_weights"] == gblend.blended(found)
    command += ["--ckpt_path", tmp_path / "other"]
    error = refused(capsys, *held_out, "--random_seed", 1, *command)
    assert "--random_seed was 0" in error
    twice = ["--gblend_runs", ",".join(folders[:2] * 2)]
    assert "of audio, visual" in refused(capsys, *held_out, *command, *twice)


@pytest.mark.parametrize("name", RUNS)
def test_in_bfloat16_gradients_are_nearly_those_of_float32(name):
    flags, found = ["--val_ratio", 0.3] if name == "relearn" else [], []
    clips = [each.float() if each.is_floating_point() else each for each in batch()]
    for amp in (True, False):
        model, method = rule(name, *flags)
        model.float().amp = amp
        taken = []

        def finish(model=model, taken=taken):
            taken.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            model.zero_grad()

        losses = method.update(model, *clips, finish)
        assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)
        found.append(torch.cat(taken))
    assert found[0].dtype == torch.float32 and not torch.equal(*found)
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


APART = {"joint_uni", "gblend", "agm", "mla", "relearn", "inforeg"}  # rules whose rows the losses share out


@pytest.mark.parametrize("name", RUNS)
def test_gradient_report(name):
    model, method = rule(name, *(["--val_ratio", 0.3] if name == "relearn" else []))
    report = gradient_report(method, model, *batch())
    assert (list(report) == ["L_m", "L_a", "L_v", "all"]) == (name in APART)
    assert ("cannot be told apart" in as_table(report)) == (name not in APART)
    assert all(norm > 0 for norm in report["all"].values())
    if name in ("joint_uni", "gblend", "mla"):
        assert report["L_a"]["audio"] > 0 == report["L_a"]["visual"] and report["L_v"]["audio"] == 0
        assert (report["L_m"]["audio"] == 0) == (name == "mla")
    again = gradient_report(method, model, *batch())
    assert again == report  # what the rule remembers is as it was


def test_gradient_report_of_the_command_line(flags, capsys):
    run_here(main_dgl, "--gradient_report", *flags[1:], "--method", "pmr")
    assert capsys.readouterr().out.splitlines()[-1].startswith("what each loss sends cannot be told apart")


@pytest.mark.parametrize("name", ["agm", "pmr", "umt"])
def test_right_answers_are_those_of_the_losses(name):
    model, method = rule(name)
    with WatchedLosses() as watched:
        losses = method.step(model, *batch())
    label = batch()[2]
    expected = [(logits.argmax(dim=1) == label).sum() for _, logits, _ in watched.seen]
    assert len(watched.seen) == 3 and watched.hits(losses).tolist() == expected
