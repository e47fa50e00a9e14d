"""Check that a step needs the detach; one modality; bfloat16; memory. test_methods.py has the gradients of a step."""

import copy
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import benchmark
from main_dgl import dgl_step
from models.fusion_modules import Fusion_AUXI
from tests.conftest import method_of
from tests.method_costs import peak_of_tensors
from tests.rules import (
    assert_gradients,
    assert_outputs,
    batch,
    features_of,
    gradients,
    logits_of,
    small_model,
    weighted,
)
from tests.test_methods import NarrowResNet

ALPHA = 3.0


def test_without_the_detach_the_step_raises(monkeypatch):
    monkeypatch.setattr(Fusion_AUXI, "forward", lambda self, features: self.fuse(features))
    with pytest.raises(RuntimeError, match="second time"):
        dgl_step(small_model().double(), *batch(), ALPHA)


@pytest.mark.parametrize("modality", ["audio", "visual", "text"])
def test_unimodal_step_is_plain_cross_entropy(modality):
    model = small_model(modality=modality, inputs={"audio": 1, "visual": 3, "text": 1}).double().train()
    inputs, label = batch()
    inputs["text"] = inputs["audio"]
    outputs = method_of(model, "--method", modality).step(model, inputs, label)
    (z,), head = features_of(model, inputs).values(), model.fusion_module
    logits = z @ head.weight.T + head.bias
    loss = F.cross_entropy(logits, label)
    assert_gradients(model, gradients(model, loss), tolerance=1e-10)
    assert_outputs(model, outputs, dict.fromkeys(["fused", modality], logits), dict.fromkeys(["fused", modality], loss))
    torch.testing.assert_close(model(inputs), dict.fromkeys(["fused", modality], logits))


@pytest.mark.parametrize("fusion", ["concat", "gated", "mmtm"])
def test_in_bfloat16_only_the_encoders_are(fusion):
    """Check that the gradients go the same ways, that the fusion module is in float32, and evaluation too."""
    model, (inputs, label) = small_model(fusion, encoder=NarrowResNet).train(), batch()
    model.amp, inputs = True, {name: x.float() for name, x in inputs.items()}
    outputs = dgl_step(model, inputs, label, ALPHA)
    z = {name: model.encode(name, x) for name, x in inputs.items()}
    assert {each.dtype for each in z.values()} == {torch.float32} == {p.grad.dtype for p in model.parameters()}
    logits = logits_of(model, fusion, z)
    losses = {branch: F.cross_entropy(each, label) for branch, each in logits.items()}
    torch.testing.assert_close({branch: output.logits for branch, output in outputs.items()}, logits)
    assert_gradients(model, weighted(model, losses, (0, ALPHA, ALPHA), (1, 0, 0)), tolerance=0.1)
    full, audio = copy.deepcopy(model), inputs["audio"]
    full.amp = False
    with torch.no_grad():
        difference = (full.encode("audio", audio) - model.encode("audio", audio)).norm() / z["audio"].norm()
        assert 1e-4 < difference < 0.05, "no bfloat16 in it, or too little else"
        full.load_state_dict(model.state_dict())  # with the running statistics of now
        assert torch.equal(full.eval().encode("audio", audio), model.eval().encode("audio", audio))


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc/self/status")
def test_a_step_needs_at_most_0_55_of_a_plain_steps_tensors(monkeypatch):
    """Compare steps of 16 clips. Larger batches have a smaller ratio. benchmark.py measures the process's memory."""
    monkeypatch.setattr(benchmark, "take_turns", lambda ways, rounds: {name: way() for name, way in ways.items()})
    ours, plain = (peak_of_tensors(partial(benchmark.one_step, way, 16, rounds=1)) for way in ("ours", "plain"))
    print(f"tensors at most: ours {ours / 2**30:.3f} GiB, plain {plain / 2**30:.3f} GiB, {ours / plain:.3f}")
    assert ours <= 0.55 * plain


def test_a_step_apart_reports_its_time_and_memory(monkeypatch, small_encoders, output_of):
    """Check it in this process, which is spared the start of another one."""

    def here(command, **_):
        return SimpleNamespace(stdout=output_of(benchmark, *command[2:]))

    monkeypatch.setattr(benchmark.subprocess, "run", here)
    seconds, gigabytes = benchmark.step_in_new_process("ours", 2, rounds=1)
    assert seconds > 0 and gigabytes > 0.2  # more than PyTorch needs
