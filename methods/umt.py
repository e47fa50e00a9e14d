"""Uni-Modal Teacher (Du et al., arXiv 2106.11059, and ICML 2023, arXiv 2305.01233).

    L = L_m + lambda sum of mean |z_u - z_u,T|^2, means over clips and the entries of a feature

z_u,T are the features of frozen encoders, the teachers, for the same augmented clips. Each teacher was trained alone,
and always computes in float32. Each encoder gets the gradients of L_m and of its own distance, the joint head that of
L_m. State: hashes of the teachers.
The texts of the papers were not found. The sum over modalities is our assumption, and lambda 10 is from a later
benchmark; try 1, 10, 50. No code of the authors was found.
"""

import torch.nn.functional as F

from methods.base import Method
from methods.joint import joint_step
from models.basic_model import AVClassifier
from models.weights import load_checkpoint
from utils.errors import InputError
from utils.seeds import hash_of


class UMT(Method):
    linear = False
    saved_attributes = ("hashes",)

    def prepare(self, model):
        for name in model.modalities:
            if not getattr(self.settings, f"umt_{name}"):
                raise InputError(f"--method umt: needs --umt_{name}, best.pth of a run of --method {name}; add it")
        self.teachers, self.hashes, self.classes = {}, [], []
        for name in model.modalities:
            self.teachers[name], saved = self.teacher(name, model.n_classes, model.inputs)
            self.hashes.append(hash_of(saved["model"].values()))
            self.classes.append(saved["classes"])

    def begin_epoch(self, epoch, model, loaders, device):
        if any(classes != list(loaders["train"].dataset.classes) for classes in self.classes):
            raise InputError(
                "--umt_audio, --umt_visual, --umt_text: a teacher was trained on other classes; use other teachers"
            )

    def teacher(self, name, n_classes, inputs):
        """Load the teacher that --umt_<modality> names; return (model in evaluation mode, its checkpoint)."""
        flag, path = f"--umt_{name}", getattr(self.settings, f"umt_{name}")
        saved = load_checkpoint(path)
        settings = saved["settings"]
        method = settings.get("method") or settings.get("modality")
        if method != name:
            raise InputError(f"{flag} {path}: a checkpoint of --method {method}; give best.pth of --method {name}")
        if settings.get("dataset") != self.settings.dataset:
            raise InputError(
                f"{flag} {path}: trained on {settings.get('dataset')}, not {self.settings.dataset}; use another teacher"
            )
        model = AVClassifier(n_classes, modality=name, backbone=self.settings.backbone, inputs=inputs)
        try:
            model.load_state_dict(saved["model"])
        except RuntimeError:
            fits = f"--backbone {self.settings.backbone} and {self.settings.dataset}"
            raise InputError(f"{flag} {path}: its weights do not fit {fits}; use another teacher") from None
        return model.requires_grad_(False).eval(), saved

    def step(self, model, inputs, label):
        def distance(features):
            return self.settings.umt_lambda * sum(
                F.mse_loss(feature, self.teachers[name].to(feature).encode(name, inputs[name]))
                for name, feature in features.items()
            )

        return joint_step(model, inputs, label, extra=distance)

    def load_state_dict(self, state):
        if state["hashes"] != self.hashes:
            raise ValueError("the run had other teachers")
