"""What the tests of the training rules share: a small encoder, rules that are ready to step, gradients compared."""

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

NEEDS = {"gblend": ["--gblend_weights", "0.2,0.5,0.3"]}  # flags that a rule is not built without


def small_model(fusion="concat", modality="full", seed=0, n_classes=CLASSES, inputs=None):
    """An AVClassifier with small encoders, in float32."""
    with patch.dict(BACKBONES, resnet18=SmallEncoder):
        torch.manual_seed(seed)
        return AVClassifier(n_classes, fusion, modality, inputs=inputs)


def rule(name, *flags, fusion="concat"):
    """A small model in float64, in training, and its rule, ready to step -> (model, method)."""
    model = small_model(fusion)
    method = build_method(settings_of("--method", name, *NEEDS.get(name, ()), *flags), model)
    with torch.no_grad():
        for layer in model.fusion_module.modules():
            if isinstance(layer, nn.Linear):
                layer.bias.normal_()  # so that it matters how a bias is counted
    if name == "umt":
        method.teachers = {name: small_model(modality=name, seed=9).eval() for name in model.modalities}
        for teacher in method.teachers.values():
            teacher.requires_grad_(False)
        method.hashes = [1, 2]
    elif name == "pmr":
        method.prototypes = dict(zip(model.modalities, torch.rand(2, CLASSES, 512, dtype=torch.float64), strict=True))
        method.present = torch.ones(CLASSES, dtype=torch.bool)
    elif name == "relearn":
        method.prepare(model)
    elif name == "inforeg":
        method.begin_epoch(0, model, {}, torch.device("cpu"))
    return model.double().train(), method


def whole_step(model, method, inputs, label):
    """Run a step and adjust its gradients, as training in one process does -> outputs."""
    for outputs in method.steps(model, inputs, label):
        method.adjust_gradients(model, outputs, label)
    return outputs


def fused(model, a, v, fusion="concat"):
    """The joint head's logits, by the formula."""
    head = getattr(model.fusion_module, "joint", model.fusion_module)
    return FORMULAS[fusion][0](dict(head.named_parameters()), a, v)


def own(model, a, v):
    """The logits of heads of their own, audio's and video's."""
    weights = dict(model.fusion_module.named_parameters())
    return linear(weights, "audio_head", a), linear(weights, "visual_head", v)


def alone(model, a, v, fusion="concat"):
    """Each modality's logits of the joint head; with concat each has half of the bias."""
    weights = dict(model.fusion_module.named_parameters())
    half = weights["fc_out.bias"] / 2 if fusion == "concat" else 0
    return FORMULAS[fusion][1](weights, a) - half, FORMULAS[fusion][2](weights, v) - half


def gradients(model, outputs, weights=None):
    """d(outputs), weighted, of every parameter by name; zeros where nothing reaches it."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(
        outputs, list(named.values()), weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, found, strict=True))


def assert_gradients(model, expected):
    """Every .grad is what is expected, to 1e-5 of its length; where 0 is expected it may be missing."""
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        error = (grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert error < 1e-5, f"{name}: relative error {error:.2e}"


def likely(logits, label):
    """Softmax probability of the true class, (B,)."""
    return torch.stack([row.softmax(0)[k] for row, k in zip(logits, label, strict=True)])


def labels_that_favour(first, other):
    """Labels at which the first logits are better than the other by as much as can be."""
    return (first.softmax(1) - other.softmax(1)).argmax(dim=1)


# Three modalities

TOY_CLASSES, TOY_DIM, TOY_BATCH = 4, 6, 5
WIDTHS = {"a": 5, "v": 3, "t": 4}  # of the inputs (B, 1, 4, width)
TOY_NEEDS = {"gblend": ["--gblend_weights", "0.4,0.3,0.2,0.1"]}


class Toy(nn.Module):
    """A model of three modalities, as the methods use one.

    Args:
        encoders: {modality: module}; by default small networks of TOY_DIM outputs.
    """

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
    model, method = toy(name, *TOY_NEEDS.get(name, ()), *flags, fusion=fusion)
    if name == "umt":
        teacher, method.hashes, method.classes = toy()[0].requires_grad_(False), [], []
        for parameter in teacher.parameters():
            parameter += 0.1
        method.teachers = dict.fromkeys(model.modalities, teacher)
    elif name == "pmr":
        centres = torch.randn(3, TOY_CLASSES, TOY_DIM, dtype=torch.float64)
        method.prototypes = dict(zip(model.modalities, centres, strict=True))
        method.present = torch.ones(TOY_CLASSES, dtype=torch.bool)
    elif name == "relearn":
        method.prepare(model)
    elif name == "inforeg":
        method.begin_epoch(0, model, {}, torch.device("cpu"))
    return model, method


def toy_batch(seed=1, size=TOY_BATCH):
    """Return a batch of random clips in float64: {modality: (B, 1, 4, width)}, label (B,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(size, 1, 4, width, generator=generator, dtype=torch.float64) for name, width in WIDTHS.items()
    }
    return inputs, torch.randint(TOY_CLASSES, (size,), generator=generator)


def toy_logits(model, fusion, features):
    """Return each modality's logits by the formulas: W_u z_u + b, or its own linear layer."""
    parameters = dict(model.fusion_module.named_parameters())
    if fusion == "concat":
        parts, bias = parameters["fc_out.weight"].split(model.dim, dim=1), parameters["fc_out.bias"]
        return {name: z @ part.T + bias for part, (name, z) in zip(parts, features.items(), strict=True)}
    layers = zip(("fc_x", "fc_y", "fc_z"), features.items(), strict=True)
    return {name: linear(parameters, fc, z) for fc, (name, z) in layers}


def toy_written_out(model, fusion, inputs, label):
    """Return the logits of every branch and their cross-entropies by the formulas, in one graph."""
    alone = toy_logits(model, fusion, {name: model.encode(name, x) for name, x in inputs.items()})
    fused = sum(alone.values())
    if fusion == "concat":
        fused = fused - 2 * model.fusion_module.fc_out.bias
    logits = {"fused": fused, **alone}
    return logits, {branch: F.cross_entropy(each, label) for branch, each in logits.items()}


def write_teachers(folder, dataset="CREMAD", classes=(), n_classes=CLASSES, seed=100, small=True):
    """Runs of one encoder each, for UMT -> the flags that name them."""
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


class Loader:
    """What a rule knows of a loader."""

    def __init__(self, dataset, steps):
        self.dataset, self.steps = dataset, steps

    def __len__(self):
        return self.steps


def loaders_of(inputs, label, steps=2):
    """Return loaders of every split, all of the same clips: {modality: (M, ...)}, (M,)."""
    loader = Loader(Clips(inputs, label), steps)
    return dict.fromkeys(("train", "plain", "val"), loader)


def mla_half_step(loss, parameters, feature=None, projection=None):
    """Step parameters by 0.1 of the gradient of a loss, the head's weight (last but one) projected, by hand.

    Returns:
        the projection that has taken in the mean of the features (B, D), for alpha 0.1^1.5; None without one.
    """
    steps = list(torch.autograd.grad(loss, parameters))
    if projection is not None:
        steps[-2] = steps[-2] @ projection
        r = feature.detach().mean(0)
        k = projection @ r
        projection = projection - torch.outer(k, k) / (0.1**1.5 + r @ k)
    with torch.no_grad():
        for parameter, step in zip(parameters, steps, strict=True):
            parameter -= 0.1 * step
    return projection


def assert_same_parameters(model, expected):
    """Raise AssertionError unless the parameters of two models are the same to 1e-9 of their length."""
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (p - q).norm() <= 1e-9 * q.norm(), name
