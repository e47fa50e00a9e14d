"""The table of training rules, and what builds one. A new rule is a file in this folder and a row here.

Options, checkpoints, gradient report and comparison know a rule by its row. Nothing here imports PyTorch, which --help,
wrong flags and tables can do without.
"""

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from utils.errors import InputError
from utils.options import at_least


class Flag(NamedTuple):
    """A hyper-parameter of a rule, as it is typed: `--<name>`."""

    name: str
    type: Callable
    default: object
    help: str
    metavar: str | None = None


@dataclass(frozen=True)
class Entry:
    """A training rule: what tables call it, where its class is, its flags, and that of them which is tuned, if any.

    `modality` is that of the model it trains. `runs` says what it needs of other rules' runs with its seed: {flag: text
    with {name} for the folder of a run of that rule}. Called with (args, model), an entry gives the rule as its class does.
    """

    label: str
    where: str
    flags: tuple[Flag, ...] = ()
    tuned: str | None = None
    modality: str = "full"
    runs: dict[str, str] = field(default_factory=dict)

    def __call__(self, args, model):
        module, _, name = self.where.rpartition(".")
        return getattr(importlib.import_module(module), name)(args, model)


ALPHA = Flag("alpha", at_least(0, float), 4.0, "weight of the unimodal losses, the one value to tune: try 1 to 8")
WINDOW = (
    Flag("modulation_starts", at_least(0), 0, "first epoch, counted from 0, that is modulated", "EPOCH"),
    Flag("modulation_ends", at_least(0), 50, "last epoch, counted from 0, that is modulated", "EPOCH"),
)
OGM = (Flag("ogm_alpha", at_least(0, float), 0.1, "strength of the modulation"), *WINDOW)

METHODS = {  # in the order of tables
    "audio": Entry("audio alone", "methods.unimodal.Unimodal", modality="audio"),
    "visual": Entry("visual alone", "methods.unimodal.Unimodal", modality="visual"),
    "joint": Entry("joint", "methods.joint.Joint"),
    "ogm": Entry("OGM", "methods.ogm.OGM", OGM),
    "ogm_ge": Entry("OGM-GE", "methods.ogm.OGM_GE", OGM),
    "no_mgt+no_ugt": Entry("DGL -MGT -UGT", "methods.ablations.NoMGTNoUGT", (ALPHA,), tuned="alpha"),
    "no_mgt": Entry("DGL -MGT", "methods.ablations.NoMGT", (ALPHA,), tuned="alpha"),
    "no_ugt": Entry("DGL -UGT", "methods.ablations.NoUGT", (ALPHA,), tuned="alpha"),
    "dgl": Entry("DGL", "main_dgl.DGL", (ALPHA,), tuned="alpha"),
}

# A method named beside another flag that makes it a variant of it is that variant: --method joint --modulation OGM.
VARIANTS = {"dgl": {"no_mgt", "no_ugt", "no_mgt+no_ugt", "audio", "visual"}, "joint": {"ogm", "ogm_ge"}}
AUTHORS_FLAGS = {flag.name for flag in (ALPHA, *WINDOW)}  # stand in scripts, whatever the method


def flags():
    """Every rule's flags -> {Flag: names of the rules that have it}, in the order of the table."""
    owners = {}
    for name, entry in METHODS.items():
        for flag in entry.flags:
            owners.setdefault(flag, []).append(name)
    return owners


def resolve(settings):
    """Settings of a run with its method under the name that METHODS has for it, and of hyper-parameters its own alone.

    --modality audio, --modulation OGM, --no_mgt and --no_ugt, which the authors and older runs have, name a method too.

    Args:
        settings: {name: value}, as typed or as a checkpoint records them; "method" may be missing or None, then dgl.

    Raises:
        InputError: two flags name different methods.
    """
    settings = dict(settings)
    modality, modulation = settings.pop("modality", None), settings.pop("modulation", None)
    left_out = [name for name in ("no_mgt", "no_ugt") if settings.pop(name, False)]
    named = {f"--modality {modality}": modality} if modality in METHODS else {}
    if modulation not in (None, "Normal"):
        named[f"--modulation {modulation}"] = str(modulation).lower()
    if left_out:
        named[" ".join(f"--{name}" for name in left_out)] = "+".join(left_out)
    method = settings.pop("method", None)
    if method is not None and not (named and set(named.values()) <= VARIANTS.get(method, {method})):
        named[f"--method {method}"] = method
    if len(set(named.values())) > 1:
        raise InputError(f"{' and '.join(named)}: different methods; leave out all but one")
    method = next(iter(named.values()), "dgl")
    entry = METHODS.get(method)
    if entry is None:
        raise InputError(f"{next(iter(named))}: none of {', '.join(METHODS)}; name one of them")
    if modality == "full" != entry.modality:
        raise InputError(f"--method {method}: trains one encoder; leave out --modality full")
    others = {flag.name for flag in flags()} - {flag.name for flag in entry.flags}
    settings = {name: value for name, value in settings.items() if name not in others}
    return settings | {"method": method, "modality": entry.modality}


def check_flags(args, typed):
    """Refuse flags of other methods than args.method; those that the authors' scripts always have are a warning.

    Args:
        args: the settings, resolved.
        typed: the flags that were typed, {name: value}.

    Raises:
        InputError: names the flag and what to leave out.
    """
    for flag, owners in flags().items():
        if flag.name in typed and args.method not in owners:
            if flag.name not in AUTHORS_FLAGS:
                raise InputError(
                    f"--{flag.name}: of --method {' or '.join(owners)}, not of {args.method}; leave it out"
                )
            print(f"warning: --{flag.name}: no effect with --method {args.method}", file=sys.stderr)
    starts, ends = getattr(args, "modulation_starts", 0), getattr(args, "modulation_ends", math.inf)
    if starts > ends:
        raise InputError(f"--modulation_starts {starts}: after --modulation_ends {ends}; lower it")


def describe(settings):
    """A run's method as tables call it, and the value of its tuned flag, None where it has none -> (label, value)."""
    entry = METHODS[settings["method"]]
    return entry.label, settings[entry.tuned] if entry.tuned else None


def build_method(args, model):
    """The training rule that the settings name, for a model that is as it begins: it may give it heads of its own."""
    return METHODS[args.method](args, model)


def build(args, n_classes):
    """The model that the settings describe, as it begins, and its training rule -> (AVClassifier, Method).

    Weights are drawn from PyTorch's generator: encoders, joint head, then what heads the rule adds.
    """
    from models.basic_model import AVClassifier

    model = AVClassifier(n_classes, args.fusion_method, args.modality)
    return model, build_method(args, model)
