"""Diagnosing and re-learning (Wei et al., ECCV 2024, arXiv 2407.09705): go back towards the start where one overfits.

    P = share of clips with their cluster's commonest label; k-means, a cluster per class, on one modality's features
    theta <- (1 - alpha) theta + alpha theta_start, alpha = tanh(lambda |P_train - P_held_out|), for each encoder

Training is joint. This is done before epochs 21, 41 and 61, counted from 0, to all parameters of both encoders;
running statistics, fusion and momentum stay. Needs --val_ratio. Saved: a digest of the start; alpha is in the log.
Defaults of the published code for CREMA-D: lambda 3, every 20 epochs, 3 times; that each column of the features is
scaled to -1 to 1 is its way too. It takes training features from augmented clips, ours are as in evaluation.
"""

import math

import torch

from methods.joint import Joint
from utils.training import checkpoint, distributed
from utils.training.statistics import features_of, purity


class Relearn(Joint):
    remembers = "digest", "strengths"
    splits = ("plain", "val")
    strengths = [0.0, 0.0]

    def prepare(self, model):
        self.start = [[p.detach().clone() for p in net.parameters()] for net in (model.audio_net, model.visual_net)]
        self.digest = checkpoint.digest([tensor for encoder in self.start for tensor in encoder])

    def begin_epoch(self, epoch, model, loaders, device):
        args, self.strengths = self.args, [0.0, 0.0]
        times, since = divmod(epoch - 1, args.relearn_every)
        if since or not 1 <= times <= args.relearn_times:
            return
        train, held_out = (features_of(model, loaders[split].dataset, args.batch_size, device) for split in self.splits)
        if distributed.rank() == 0:  # clusters drawn in one process are the same for all
            clusters = len(train[2].unique())
            for modality in range(2):
                before, after = (purity(clips[modality], clips[2], clusters) for clips in (train, held_out))
                self.strengths[modality] = math.tanh(args.relearn_lambda * abs(before - after))
        self.strengths = distributed.everyones(self.strengths)[0]
        self.relearn(model)

    @torch.no_grad()
    def relearn(self, model):
        """Move both encoders towards their start by `strengths`."""
        for net, start, alpha in zip((model.audio_net, model.visual_net), self.start, self.strengths, strict=True):
            for parameter, begun in zip(net.parameters(), start, strict=True):
                parameter.lerp_(begun.to(parameter), alpha)

    def row(self):
        return {"relearn_audio": self.strengths[0], "relearn_visual": self.strengths[1]}

    def load_state_dict(self, state):
        if state["digest"] != self.digest:
            raise ValueError("it started from other weights")
        super().load_state_dict(state)
