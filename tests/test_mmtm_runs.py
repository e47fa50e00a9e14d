"""Check the mmtm fusion in runs: every method that takes it, rejected with the others, resumed, frozen, evaluated."""

import json

import pytest
import torch

import main_dgl
import valid
from methods import METHODS
from models.backbone import BACKBONES
from models.weights import load_checkpoint
from tests.conftest import SMALL, data_flags, run_here
from tests.rules import NEEDS
from tests.test_methods_runs import RUNS, interrupt_in_epoch, rejected
from tests.test_mmtm import ResNet10
from tests.torture import assert_same_run

REJECTED = {"mla": "has its own; leave it out", "lfm": "has its own; leave it out", "umt": "use concat or another"}
TAKEN = [name for name, entry in METHODS.items() if entry.modality == "full" and name not in REJECTED]
FLAGS = {
    "gblend": NEEDS["gblend"],
    "relearn": [*RUNS["relearn"], "--relearn_unimodal", 1, "--epochs", 3],  # the third after a step back
    "inforeg": [*RUNS["inforeg"], "--inforeg_unimodal", 1],
}


@pytest.fixture
def flags(corpus, small, monkeypatch):
    """Return flags of a short epoch."""
    monkeypatch.setitem(BACKBONES, "resnet18", ResNet10)
    run = ["--num_workers", 0, "--epochs", 1, "--learning_rate", 0.01, "--fusion_method", "mmtm"]
    return ["--train", *data_flags(corpus), *SMALL, *run]


@pytest.mark.parametrize("name", TAKEN)
def test_every_other_method_trains_and_is_evaluated(flags, tmp_path, capsys, name):
    run_here(main_dgl, *flags, "--method", name, *FLAGS.get(name, []), "--ckpt_path", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    modules = ["gradient_fusion", "gradient_audio", "gradient_visual"]
    assert rows and all(row[module] > 0 for row in rows for module in modules)
    probe = ["--linear_probe"] if name == "dgl" else []
    run_here(valid, "--ckpt_path", tmp_path / "run" / "best.pth", *probe, "--json", tmp_path / "valid.json")
    found, best = (json.loads(path.read_text()) for path in (tmp_path / "valid.json", tmp_path / "run" / "result.json"))
    assert [found[branch] for branch in ("fused", "audio", "visual")] == [
        best["best"][branch] for branch in ("fused", "audio", "visual")
    ]
    assert "mmtm fusion" in capsys.readouterr().out and (found["linear_probe"] is not None) == (name == "dgl")


@pytest.mark.parametrize("name", REJECTED)
def test_methods_that_need_whole_encoders_are_rejected(flags, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(main_dgl, "load_data", lambda *_: pytest.fail("clips were read"))
    teachers = ["--umt_audio", "a.pth", "--umt_visual", "v.pth"] if name == "umt" else []
    error = rejected(capsys, *flags, "--method", name, *teachers, "--ckpt_path", tmp_path)
    assert f"--fusion_method mmtm: --method {name} " in error and REJECTED[name] in error
    assert "--alone zeros: no effect" in rejected(capsys, *flags, "--alone", "zeros", "--ckpt_path", tmp_path)


def test_resumed_to_the_bit_with_a_frozen_encoder(flags, tmp_path, monkeypatch):
    """Check it with PMR, which remembers prototypes of maps, the visual encoder frozen, in bfloat16.

    The frozen encoder ends at layer2; the stream behind it learns.
    """
    command = [*flags, "--method", "pmr", "--freeze", "visual", "--pmr_mu", 0.1, "--amp", "bf16", "--epochs", 2]
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        interrupt_in_epoch(1, patch)
        run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    first = load_checkpoint(tmp_path / "parts" / "last.pth")
    assert tuple(first["method"]["prototypes"]["visual"].shape) == (6, 128)
    run_here(main_dgl, *command, "--ckpt_path", tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    before, after = first["model"], load_checkpoint(tmp_path / "whole" / "last.pth")["model"]
    for name, value in before.items():
        if name.startswith("visual_net"):
            assert torch.equal(value, after[name]), name
        elif name.endswith("conv1.weight"):
            assert not torch.equal(value, after[name]), name


def test_the_gradient_report(flags, tmp_path, capsys):
    run_here(main_dgl, *flags[1:], "--gradient_report")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    reached = {line[0]: [cell != "0" for cell in line[1:]] for line in lines if line and line[0].startswith("L_")}
    assert reached == {
        "L_m": [True, False, False],
        "L_audio": [False, True, False],
        "L_visual": [False, False, True],
    }
