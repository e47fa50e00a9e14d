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

CLASSES = 5
NEEDS = {"gblend": ["--gblend_weights", "0.2,0.5,0.3"]}  # flags that a method is not built without


def batch(size=4, frames=2):
    """Return a batch of random clips in float64: {"audio": .., "visual": ..}, label."""
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "audio": torch.randn(size, 1, 40, 44, generator=generator, dtype=torch.float64),
        "visual": torch.randn(size, 3, frames, 36, 36, generator=generator, dtype=torch.float64),
    }
    return inputs, torch.randint(CLASSES, (size,), generator=generator)


def small_model(
    fusion="concat", modality="full", seed=0, n_classes=CLASSES, inputs=None, encoder=SmallEncoder, alone="own"
):
    """Return an AVClassifier with small encoders, in float32."""
    with patch.dict(BACKBONES, resnet18=encoder):
        torch.manual_seed(seed)
        return AVClassifier(n_classes, fusion, modality, alone=alone, inputs=inputs)


def draw_biases(model):
    """Draw the biases of the fusion module, which are 0 at first, so that it matters how a bias is counted."""
    with torch.no_grad():
        for name, parameter in model.fusion_module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()


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


def rule(name, *flags, **arguments):
    """Return a small model in float64, in training, and its method, ready to step -> (model, method)."""
    model = small_model(**arguments)
    method = build_method(settings_of("--method", name, *NEEDS.get(name, ()), *flags), model)
    draw_biases(model)
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


def weighted(model, losses, of_encoders, of_fusion):
    """Return the gradients of weighted losses, {name: gradient}, with other weights for the encoders."""
    encoders, expected = (
        gradients(model, sum(weight * loss for weight, loss in zip(weights, losses.values(), strict=False)))
        for weights in (of_encoders, of_fusion)
    )
    names = [each for modality in model.modalities for each in encoder_names(model, modality)]
    return expected | {name: encoders[name] for name in names}


def assert_outputs(model, outputs, logits, losses):
    """Check the outputs of a step, {branch: Output}, by the logits and the losses of all branches."""
    assert list(outputs) == list(model.branches) == list(logits)
    tolerance = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close({branch: output.logits for branch, output in outputs.items()}, logits, **tolerance)
    torch.testing.assert_close({branch: output.loss for branch, output in outputs.items()}, losses, **tolerance)


# Three modalities

TOY_CLASSES, TOY_DIM, TOY_BATCH = 4, 6, 5
WIDTHS = {"a": 5, "v": 3, "t": 4}  # of the inputs (B, 1, 4, width)


class Toy(nn.Module):
    """A model of three modalities, or of those of other `encoders`, {modality: module}, as the methods use one."""

    frozen = ()
    forward = AVClassifier.forward

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


def toy_rule(name, *flags, **arguments):
    """Return a Toy and the method of this name, ready to step -> (model, method)."""
    flags = ["--gblend_weights", "0.4,0.3,0.2,0.1", *flags] if name == "gblend" else flags
    return prepared(name, *toy(name, *flags, **arguments))


def toy_batch(seed=1, size=TOY_BATCH):
    """Return a batch of random clips in float64: {modality: (B, 1, 4, width)}, label (B,)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn(size, 1, 4, width, generator=generator, dtype=torch.float64) for name, width in WIDTHS.items()
    }
    return inputs, torch.randint(TOY_CLASSES, (size,), generator=generator)


# Formulas


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def film(p, x, y):
    hidden = linear(p, "fc", x)
    half = hidden.shape[1] // 2
    return linear(p, "fc_out", hidden[:, :half] * y + hidden[:, half:])


def mixer(p, *features):
    """Return the mixer's logits of features (B, dim) by the formulas of CubeMLP, without dropout."""

    def perceptron(name, x):
        spread = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        hidden = linear(p, f"{name}.1", spread * p[f"{name}.0.weight"] + p[f"{name}.0.bias"])
        return linear(p, f"{name}.3", hidden * (1 + torch.erf(hidden / 2**0.5)) / 2)  # GELU

    tokens = torch.stack(features, dim=1)
    for k in range(2):
        tokens = tokens + perceptron(f"blocks.{k}.over_modalities", tokens.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + perceptron(f"blocks.{k}.over_channels", tokens)
    return linear(p, "fc_out", tokens.flatten(1))


# The fused logits of every fusion module: parameters by name, features (B, dim) in order -> logits.
FORMULAS = {
    "concat": lambda p, *z: linear(p, "fc_out", torch.hstack(z)),
    "sum": lambda p, *z: sum(linear(p, f"fc_{letter}", each) for letter, each in zip("xyz", z, strict=False)),
    "gated": lambda p, x, y: linear(p, "fc_out", linear(p, "fc_x", x).sigmoid() * linear(p, "fc_y", y)),
    "film": film,
    "bilinear": lambda p, x, y: linear(p, "fc_out", linear(p, "fc", torch.einsum("bi,bj->bij", x, y).flatten(1))),
    "mixer": mixer,
    "mmtm": lambda p, *z: linear(p, "fc_out", torch.hstack(z)),  # of what `mmtm_vectors` returns
}
# Those of one modality alone, if it has neither 0 nor its own feature in every place: parameters, its hidden vector.
ALONE = {
    "sum": lambda p, hidden: hidden,
    "gated": lambda p, hidden: linear(p, "fc_out", hidden.sigmoid() * hidden),
}


def mmtm_vectors(p, streams, maps):
    """Return what the given streams of mmtm end in, {modality: (B, dim)}, by the formulas; p are the parameters."""

    def gated(k, maps):
        mean = {name: x.mean((1, 3, 4)) for name, x in maps.items()}
        squeezed = [mean.get(name, torch.zeros_like(next(iter(mean.values())))) for name in streams]
        z = linear(p, f"mmtm{k}.squeeze", torch.hstack(squeezed)).clamp(min=0)
        gates = {name: 1 / (1 + (-linear(p, f"mmtm{k}.excite.{name}", z)).exp()) for name in maps}
        return {name: x * gates[name][:, None, :, None, None] for name, x in maps.items()}

    maps = gated(2, maps)
    for k in (3, 4):
        images = {name: streams[name][f"layer{k}"](x.flatten(0, 1)) for name, x in maps.items()}
        maps = gated(k, {name: x.unflatten(0, maps[name].shape[:2]) for name, x in images.items()})
    return {name: x.mean((1, 3, 4)) for name, x in maps.items()}


def features_of(model, inputs):
    """Return the features of all modalities: an encoder's maps (B, N, C, h, w), and without mmtm their average."""
    features = {}
    for name in model.modalities:
        x, encoder = inputs[name], model.encoder(name)
        if isinstance(model, Toy):
            features[name] = encoder(x)
            continue
        frames = x.unbind(2) if x.dim() == 5 else [x]
        maps = torch.stack(encoder(torch.cat(frames)).split(len(x)), dim=1)
        features[name] = maps if model.takes_maps else maps.mean((1, 3, 4))
    return features


def logits_of(model, fusion, features):
    """Return the logits of every branch by the formulas; `fusion` may be "sum zeros", "gated zeros", ..

    The logits of one modality are those of its own head if the model has such heads.
    """
    fusion, _, zeros = fusion.partition(" ")
    heads, joint = model.fusion_module, getattr(model.fusion_module, "joint", model.fusion_module)
    p, own = dict(joint.named_parameters()), dict(heads.named_parameters())
    together = alone = features
    if fusion == "mmtm":
        together = mmtm_vectors(p, joint.streams, features)
        alone = {name: mmtm_vectors(p, joint.streams, {name: maps})[name] for name, maps in features.items()}
    logits = {"fused": FORMULAS[fusion](p, *together.values())}
    for k, (name, z) in enumerate(alone.items()):
        nothing = dict.fromkeys(alone, torch.zeros_like(z))
        if f"{name}_head.weight" in own:
            logits[name] = linear(own, f"{name}_head", z)
        elif zeros or fusion in ("concat", "mixer", "mmtm"):
            logits[name] = FORMULAS[fusion](p, *(nothing | {name: z}).values())
        elif fusion in ALONE:
            logits[name] = ALONE[fusion](p, linear(p, f"fc_{'xyz'[k]}", z))
        else:
            logits[name] = FORMULAS[fusion](p, *[z] * len(alone))
    return logits


def toy_logits(model, fusion, features):
    """Return the logits of each modality alone by the formulas."""
    return {name: logits for name, logits in logits_of(model, fusion, features).items() if name != "fused"}


def shared_bias(model, fusion):
    """Return what is left out of each modality's logits so that they add up to the fused ones."""
    n = len(model.modalities)
    return model.fusion_module.fc_out.bias * (n - 1) / n if fusion == "concat" else 0


def written_out(model, fusion, inputs, label):
    """Return the features, the logits of every branch by the formulas and their cross-entropies, in one graph."""
    z = features_of(model, inputs)
    logits = logits_of(model, fusion, z)
    return z, logits, {branch: F.cross_entropy(each, label) for branch, each in logits.items()}


# Parameters, files and clips


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
