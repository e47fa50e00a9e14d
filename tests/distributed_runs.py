"""Runs in float64, BatchNorm in evaluation mode, which tests/test_distributed.py starts alone and with torchrun.

python tests/distributed_runs.py CORPUS OUT
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import main_dgl
from engine import evaluation, meter, suppression
from methods import features
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from tests.conftest import SmallEncoder, make_small, train
from tests.test_methods import NarrowResNet
from utils.batches import to_device

RUNS = """
dgl --fusion_method concat
dgl --fusion_method gated
dgl --fusion_method gated --alone zeros
dgl --fusion_method mmtm
dgl --freeze visual
ogm_ge --fusion_method concat
ogm_ge --fusion_method gated
ogm --ogm_rule journal --ogm_alpha 0.8
joint --log_suppression
joint_uni
joint_uni --joint_uni_weight 2
gblend --gblend_weights 0.2,0.5,0.3
agm --fusion_method gated
agm --agm_clip
pmr --pmr_mu 0.1 --epochs 2
mmpareto
mmpareto --mmpareto_rescale tensor
mla
lfm
lfm --lfm_match code
relearn --val_ratio 0.3 --relearn_every 1 --relearn_times 1 --epochs 3
relearn --val_ratio 0.3 --relearn_every 1 --relearn_unimodal 1 --epochs 3
umt
inforeg --inforeg_k=-1e9 --epochs 3
""".strip().splitlines()  # methods and their flags; each is the name of its folder too
BATCHES = ["--batch_size", 8, "--image_size", 33]  # of 18 clips: two batches, and two clips that are left over


def small_batch(batch, device):
    """Move a batch as to_device does, in float64, so that rounding stays small, with a corner of the spectrogram."""
    inputs, label = to_device(batch, device)
    return {"audio": inputs["audio"][..., :64, :64].double(), "visual": inputs["visual"].double()}, label


def in_float64(model, method):
    if getattr(method.settings, "agm_clip", False):  # features so large that the head's gradients have entries above 1
        with torch.no_grad():
            for name in model.modalities:
                model.encoder(name)[-2].weight *= 30
    return model.double(), method


def train_all(corpus, out):
    """Train every one of RUNS into a folder below `out`; the teachers of UMT are next to the corpus."""
    with main_dgl.processes(torch.device("cpu")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_dgl, "processes", lambda device: nullcontext())  # in one launch they are joined once
        make_small(patch)
        build, training = main_dgl.build, AVClassifier.train
        patch.setattr(main_dgl, "build", lambda *arguments: in_float64(*build(*arguments)))
        patch.setattr(AVClassifier, "train", lambda model, mode=True: training(model, False))
        patch.setattr(main_dgl, "refresh_batchnorm", lambda model, batches: None)
        for module in (meter, evaluation, suppression, features):
            patch.setattr(module, "to_device", small_batch)
        common = ["--device", "cpu", "--num_workers", 0, *BATCHES, "--epochs", 1]
        teachers = [f"--umt_{name}={corpus / name}.pth" for name in ("audio", "visual")]
        for run in RUNS:
            patch.setitem(BACKBONES, "resnet18", NarrowResNet if "mmtm" in run else SmallEncoder)
            train(corpus, out / run, *common, "--method", *run.split(), *(teachers if run == "umt" else []))


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), Path(sys.argv[2]))
