"""What the tests of methods share: small models, methods that are ready to step, formulas, gradients compared."""

import copy
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from engine.checkpoint import save
from methods import build_method
from models.backbone import BACKBONES
from models.basic_model import AVClassifier
from models.fusion_modules import FUSION_MODULES
from tests.conftest import SmallEncoder, settings_of
from tests.test_dgl_step import CLASSES, FORMULAS, linear

NEEDS = {"gblend": ["--gblend_weights", "0.2,0.5,0.3"]}  # flags that a method is not built without


def small_model(fusion="concat", modality="full", seed=0, n_classes=CLASSES, inputs=None):
    """Return an AVClassifier with small encoders, in float32."""
    with patch.dict(BACKBONES, resnet18=SmallEncoder):
        torch.manual_seed(seed)
        return AVClassifier(n_classes, fusion, modality, inputs=inputs)


def prepared(name, model, method):
    """Give a method what it needs before a step, but for begin_epoch with clips -> (model, method)."""
    if name == "umt":
        teacher, method.hashes, method.classes = copy.deepcopy(model).requires_grad_(False).eval(), [], []
        for parameter in teacher.parameters():
            parameter += 0.1
        method.teachers = dict.fromkeys(model.modalities, teacher)
    elif name == "pmr":
        centres = torch.randn(len(model.modalities), model.n_classes, model.dim, dtype=torch.float64)
        method.prototypes = dict(zip(model.modalities, centres, strict=True))
        method.present = torch.ones(model.n_classes, dtype=torch.bool)
    elif name == "relearn":
        method.prepare(model)
    elif name == "inforeg":
        method.begin_epoch(0, model, {}, torch.device("cpu"))
    return model, method


def rule(name, *flags, fusion="concat"):
    """Return a small model in float64, in training, and its method, ready to step -> (model, method)."""
    model = small_model(fusion)
    method = build_method(settings_of("--method", name, *NEEDS.get(name, ()), *flags), model)
    with torch.no_grad():
        for layer in model.fusion_module.modules():
            if isinstance(layer, nn.Linear):
                layer.bias.normal_()  # so that it matters how a bias is counted
    prepared(name, model, method)  # a teacher stays in float32
    return model.double().train(), method


def whole_step(model, method, inputs, label):
    """Run a step and adjust its gradients, as training in one process does -> outputs."""
    for outputs in method.steps(model, inputs, label):
        method.adjust_gradients(model, outputs, label)
    return outputs


def gradients(model, outputs, weights=None):
    """Return d(outputs), weighted, of every parameter by name; zeros where nothing reaches it."""
    named, options = dict(model.named_parameters()), {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(outputs, list(named.values()), weights, retain_graph=True, **options)
    return dict(zip(named, found, strict=True))


def assert_gradients(model, expected, tolerance=1e-5):
    """Check that every .grad is what is expected, relative to its length; where 0 is expected it may be missing."""
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        error = (grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert error < tolerance, f"{name}: relative error {error:.2e}"


# Three modalities

TOY_CLASSES, TOY_DIM, TOY_BATCH = 4, 6, 5
WIDTHS = {"a": 5, "v": 3, "t": 4}  # of the inputs (B, 1, 4, width)


class Toy(nn.Module):
    """A model of three modalities, or of those of other `encoders`, {modality: module}, as the methods use one."""

    frozen = ()

    def __init__(self, fusion="concat", encoders=None, n_classes=TOY_CLASSES, dim=TOY_DIM):
        super().__init__()
        encoders = encoders or {name: small_network(width, dim) for name, width in WIDTHS.items()}
        self.encoders, self.n_classes, self.dim = nn.ModuleDict(encoders), n_classes, dim
        self.modalities, self.branches = tuple(encoders), ("fused", *encoders)
        self.fusion_module = FUSION_MODULES[fusion](n_classes, dim, self.modalities)

    def encoder(self, name):
        return self.encoders[name]

    def encoder_parameters(self, name):
        return list(self.encoders[name].parameters())

    def encode(self, name, x):
        return self.encoders[name](x)


def small_network(width, dim):
    """Return a convolution and a linear layer: (B, 1, 4, width) -> (B, dim)."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * (width - 2), dim))


def toy(name=None, *flags, fusion="concat", **arguments):
    """Return a Toy in float64 and the method of this name -> (model, method)."""
    torch.manual_seed(0)
    model = Toy(fusion, **arguments)
    method = build_method(settings_of("--method", name, *flags), model) if name else None
    return model.double(), method


def toy_rule(name, *flags, fusion="concat"):
    """Return a Toy and the method of this name, ready to step -> (model, method)."""
    flags = ["--gblend_weights", "0.4,0.3,0.2,0.1", *flags] if name == "gblend" else flags
    return prepared(name, *toy(name, *flags, fusion=fusion))


def toy_batch(seed=1, size=TOY_BATCH):
    """Return a batch of random clips in float64: {modality: (B, 1, 4, width)}, label (B,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(size, 1, 4, width, generator=generator, dtype=torch.float64) for name, width in WIDTHS.items()
    }
    return inputs, torch.randint(TOY_CLASSES, (size,), generator=generator)


def joint_logits(model, fusion, features):
    """Return the joint head's logits by the formulas, of all features and of each: W_u z_u + b with concat."""
    p = dict(getattr(model.fusion_module, "joint", model.fusion_module).named_parameters())
    if fusion == "gated":
        fused, *alone = FORMULAS[fusion]
        logits = {name: formula(p, z) for formula, (name, z) in zip(alone, features.items(), strict=True)}
        return {"fused": fused(p, *features.values()), **logits}
    if fusion == "concat":
        parts = zip(p["fc_out.weight"].split(model.dim, dim=1), features.items(), strict=True)
        logits = {name: z @ part.T + p["fc_out.bias"] for part, (name, z) in parts}
        return {"fused": sum(logits.values()) - (len(logits) - 1) * p["fc_out.bias"], **logits}
    logits = {name: linear(p, f"fc_{letter}", z) for letter, (name, z) in zip("xyz", features.items(), strict=True)}
    return {"fused": sum(logits.values()), **logits}


def toy_logits(model, fusion, features):
    """Return the logits of each modality alone by the formulas."""
    return {name: logits for name, logits in joint_logits(model, fusion, features).items() if name != "fused"}


def shared_bias(model, fusion):
    """Return what is left out of each modality's logits so that they add up to the fused ones."""
    n = len(model.modalities)
    return model.fusion_module.fc_out.bias * (n - 1) / n if fusion == "concat" else 0


def written_out(model, fusion, inputs, label):
    """Return the features, the logits of every branch by the formulas and their cross-entropies, in one graph.

    The logits of one modality are those of its own head if the model has such heads.
    """
    z, p = features_of(model, inputs), dict(model.fusion_module.named_parameters())
    heads = {name: linear(p, f"{name}_head", each) for name, each in z.items() if f"{name}_head.weight" in p}
    logits = joint_logits(model, fusion, z) | heads
    return z, logits, {branch: F.cross_entropy(each, label) for branch, each in logits.items()}


def features_of(model, inputs):
    return {name: model.encode(name, inputs[name]) for name in model.modalities}


def encoder_names(model, name):
    """Return the names that the model has for the parameters of an encoder."""
    own = set(model.encoder_parameters(name))
    return [each for each, parameter in model.named_parameters() if parameter in own]


def write_teachers(folder, dataset="CREMAD", classes=(), n_classes=CLASSES, seed=100, small=True):
    """Write runs of one encoder each, for UMT -> the flags that name them."""
    flags = []
    for modality in ("audio", "visual"):
        path, settings = folder / f"{modality}.pth", {"method": modality, "dataset": dataset}
        model = small_model(modality=modality, seed=seed, n_classes=n_classes)
        if not small:
            torch.manual_seed(seed)
            model = AVClassifier(n_classes, modality=modality)
        save(path, model, settings, classes=list(classes))
        flags += [f"--umt_{modality}", str(path)]
    return flags


class Clips:
    """A dataset of given clips: {modality: (M, ...)}, label (M,)."""

    def __init__(self, inputs, label):
        self.inputs, self.label, self.classes = inputs, label, []
        self.clips = [SimpleNamespace(id=f"clip{k}", label=int(each)) for k, each in enumerate(label)]

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, numbers):
        return {name: x[numbers] for name, x in self.inputs.items()}, self.label[numbers]


class Loader(SimpleNamespace):
    """What a method uses of a loader."""

    def __len__(self):
        return self.steps


def loaders_of(inputs, label, steps=2):
    """Return loaders of every split, all of the same clips: {modality: (M, ...)}, (M,)."""
    return dict.fromkeys(("train", "plain", "val"), Loader(dataset=Clips(inputs, label), steps=steps))
