"""Uni-Modal Teacher (Du et al., arXiv 2106.11059, and ICML 2023, arXiv 2305.01233).

    L = L_m + lambda (mean |a - a_T|^2 + mean |v - v_T|^2), means over clips and the 512 entries

a_T, v_T are features of frozen encoders, each trained alone, of the same augmented clips. Each encoder gets the
gradient of L_m and of its own distance, the joint head that of L_m. Saved: a digest of the teachers, always float32.
Default: lambda 10, of a later benchmark; the papers' could not be verified, try 1, 10, 50. No authors' code was seen.
"""

import torch.nn.functional as F

from methods import resolve
from methods.base import Method
from methods.joint import joint_step
from models.basic_model import AVClassifier
from utils.errors import InputError
from utils.training import checkpoint, distributed


class UMT(Method):
    linear = False
    remembers = ("digests",)

    def prepare(self, model):
        with distributed.first_alone():  # of several processes one tells what does not fit
            taught = [self.teacher(modality, model.n_classes) for modality in ("audio", "visual")]
        self.teachers, self.digests, self.classes = (list(each) for each in zip(*taught, strict=True))

    def begin_epoch(self, epoch, model, loaders, device):
        if any(classes != list(loaders["train"].dataset.classes) for classes in self.classes):
            raise InputError("--umt_audio, --umt_visual: of other classes than there are here; take other teachers")

    def teacher(self, modality, n_classes):
        """The model that --umt_audio or --umt_visual names, in evaluation mode -> (model, digest, names of classes)."""
        flag, path = f"--umt_{modality}", getattr(self.args, f"umt_{modality}")
        saved = checkpoint.load(path)
        settings = resolve(saved["settings"])
        if settings["method"] != modality:
            raise InputError(f"{flag} {path}: of --method {settings['method']}; give best.pth of --method {modality}")
        if settings.get("dataset") != self.args.dataset:
            raise InputError(f"{flag} {path}: of {settings.get('dataset')}, not {self.args.dataset}; take another")
        model = AVClassifier(n_classes, modality=modality, backbone=self.args.backbone)
        try:
            model.load_state_dict(saved["model"])
        except RuntimeError:
            fits = f"--backbone {self.args.backbone} and {self.args.dataset}"
            raise InputError(f"{flag} {path}: its weights do not fit {fits}; take another") from None
        return model.requires_grad_(False).eval(), checkpoint.digest(saved["model"].values()), saved["classes"]

    def step(self, model, spectrogram, frames, label):
        def distance(a, v):
            hears, sees = (teacher.to(a) for teacher in self.teachers)
            far = F.mse_loss(a, hears.encode_audio(spectrogram)) + F.mse_loss(v, sees.encode_video(frames))
            return self.args.umt_lambda * far

        return joint_step(model, spectrogram, frames, label, extra=distance)

    def load_state_dict(self, state):
        if state["digests"] != self.digests:
            raise ValueError("it had other teachers")
