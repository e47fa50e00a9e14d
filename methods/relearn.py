"""Diagnosing and re-learning (Wei et al., ECCV 2024, arXiv 2407.09705): move overfitting encoders back to the start.

    P = share of clips with the commonest label of their cluster; k-means of a modality's features, a cluster per class
    theta <- (1 - alpha) theta + alpha theta_start, alpha = tanh(lambda |P_train - P_held_out|), for each encoder

Eq. 1 to 6. Training is joint; with --relearn_unimodal 1 (the paper's Ours+) there are unimodal losses too. Re-learning
happens before epochs 21, 41 and 61, counted from 0. It changes all parameters of the encoders, but not running
statistics, fusion or momentum. It needs --val_ratio. State: a hash of the initial weights; alpha is in the log.
Defaults are the paper's for CREMA-D: lambda 3, every 20 epochs. Two things are from the published code only: the
maximum of 3 times, and scaling each column of the features to -1 to 1. The code's training features are from augmented
clips, ours from clips as in evaluation. Algorithm 1 as printed also acts after the first epoch; the code and ours do
not.
"""

import math

import torch

from methods.base import OwnHeads
from methods.features import features_of, purity
from methods.joint import Joint
from methods.joint_uni import unimodal_weights, weighted_step
from utils.processes import gather, rank
from utils.seeds import hash_of


class Relearn(Joint):
    saved_attributes = ("start_hash",)
    splits = ("plain", "val")

    def __init__(self, settings, model):
        super().__init__(settings, model)
        if settings.relearn_unimodal:
            model.fusion_module = OwnHeads(model)

    def step(self, model, inputs, label):
        if weight := self.settings.relearn_unimodal:
            return weighted_step(model, inputs, label, unimodal_weights(model, weight))
        return super().step(model, inputs, label)

    def prepare(self, model):
        self.start = {name: [p.detach().clone() for p in model.encoder_parameters(name)] for name in model.modalities}
        self.strengths = dict.fromkeys(model.modalities, 0.0)
        self.start_hash = hash_of(tensor for encoder in self.start.values() for tensor in encoder)

    def begin_epoch(self, epoch, model, loaders, device):
        settings, self.strengths = self.settings, dict.fromkeys(model.modalities, 0.0)
        times, since = divmod(epoch - 1, settings.relearn_every)
        if since or not 1 <= times <= settings.relearn_times:
            return
        (train, label), (held_out, held_out_label) = (
            features_of(model, loaders[split].dataset, settings.batch_size, device) for split in self.splits
        )
        if rank() == 0:  # one process computes the clusters, so that all have the same
            clusters = len(label.unique())
            for name in model.modalities:
                gap = purity(train[name], label, clusters) - purity(held_out[name], held_out_label, clusters)
                self.strengths[name] = math.tanh(settings.relearn_lambda * abs(gap))
        self.strengths = gather(self.strengths)[0]
        self.relearn(model)

    @torch.no_grad()
    def relearn(self, model):
        """Move the parameters of every encoder towards their initial values, by the strength of its modality."""
        for name, alpha in self.strengths.items():
            for parameter, start in zip(model.encoder_parameters(name), self.start[name], strict=True):
                parameter.lerp_(start.to(parameter), alpha)

    def row(self):
        return {f"relearn_{name}": alpha for name, alpha in self.strengths.items()}

    def load_state_dict(self, state):
        if state["start_hash"] != self.start_hash:
            raise ValueError("the run started from other weights")
