"""List all methods. To add one, write a file in this folder, a row of METHODS, and its flags in utils/config.py."""

import math
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from methods.ablations import NoMGT, NoMGTNoUGT, NoUGT
from methods.agm import AGM
from methods.base import Method, Output, score
from methods.gblend import GBlend
from methods.inforeg import InfoReg
from methods.joint import Joint
from methods.joint_uni import JointUni
from methods.lfm import LFM
from methods.mla import MLA
from methods.mmpareto import MMPareto
from methods.ogm import OGM, OGM_GE
from methods.pmr import PMR
from methods.relearn import Relearn
from methods.umt import UMT
from methods.unimodal import Unimodal
from models.fusion_modules import FUSION_MODULES
from utils.config import DEFAULTS, METHOD_FLAGS
from utils.errors import InputError

__all__ = ["METHODS", "Output", "build_method", "check_flags", "describe", "resolve", "score"]


@dataclass
class Entry:
    """A row of METHODS.

    Attributes:
        label: name of the method in tables and figures.
        method_class: class of the method.
        tuned_flag: the flag to tune; tables and folder names include its value.
        modality: "full", or the only modality that the method trains.
        needs: flags without which the method cannot train; "x or y" means one of the two.
        runs: function that takes the modalities and returns {flag: value} for flags that name runs of other methods
            with the same seed. In a value, {name} stands for the folder of the run of that method.
        own_fusion: True if the method has its own fusion, so that --fusion_method has no effect.
        own_heads: True if the method scores one modality by its own heads, so that --alone has no effect.
    """

    label: str
    method_class: type[Method]
    tuned_flag: str | None = None
    modality: str = "full"
    needs: tuple[str, ...] = ()
    runs: Callable = lambda modalities: {}
    own_fusion: bool = False
    own_heads: bool = False


def blended_runs(modalities):
    """Return the flag that names the runs from which G-Blending computes its weights: joint, and each modality."""
    return {"gblend_runs": ",".join(f"{{{name}}}" for name in ("joint", *modalities))}


def teachers(modalities):
    """Return the flags that name the teachers of UMT."""
    return {f"umt_{name}": f"{{{name}}}/best.pth" for name in modalities}


METHODS = {  # in the order of tables
    "audio": Entry("audio alone", Unimodal, modality="audio"),
    "visual": Entry("visual alone", Unimodal, modality="visual"),
    "text": Entry("text alone", Unimodal, modality="text"),
    "joint": Entry("joint", Joint),
    "ogm": Entry("OGM", OGM),
    "ogm_ge": Entry("OGM-GE", OGM_GE),
    "joint_uni": Entry("joint+uni", JointUni, own_heads=True),
    "gblend": Entry("G-Blending", GBlend, needs=("gblend_runs or gblend_weights",), runs=blended_runs, own_heads=True),
    "agm": Entry("AGM", AGM),
    "pmr": Entry("PMR", PMR),
    "mmpareto": Entry("MMPareto", MMPareto, own_heads=True),
    "mla": Entry("MLA", MLA, own_fusion=True),
    "lfm": Entry("LFM (heuristic)", LFM, own_fusion=True),
    "relearn": Entry("Re-learning", Relearn, needs=("val_ratio",)),
    "umt": Entry("UMT", UMT, runs=teachers),
    "inforeg": Entry("InfoReg", InfoReg),
    "no_mgt+no_ugt": Entry("DGL -MGT -UGT", NoMGTNoUGT, tuned_flag="alpha"),
    "no_mgt": Entry("DGL -MGT", NoMGT, tuned_flag="alpha"),
    "no_ugt": Entry("DGL -UGT", NoUGT, tuned_flag="alpha"),
    "dgl": Entry("DGL", Method, tuned_flag="alpha"),  # main_dgl.py replaces Method by the class DGL
}

# Methods that a second flag can select together with --method: `--method joint --modulation OGM` is --method ogm.
VARIANTS = {"dgl": {"no_mgt", "no_ugt", "no_mgt+no_ugt", "audio", "visual", "text"}, "joint": {"ogm", "ogm_ge"}}
AUTHORS_FLAGS = {
    "alpha",
    "modulation_starts",
    "modulation_ends",
}  # the authors' scripts have these flags for every method
ENCODERS = {"audio", "visual", "text"}
SUMS = ("concat", "sum")  # fusions whose logits are a sum of one term per modality


def resolve(settings):
    """Complete the settings of a run: set its method and modality, and drop the flags of other methods.

    --modality audio, --modulation OGM, --no_mgt and --no_ugt also name a method; the authors' scripts and older runs
    have these flags. A missing setting, as in an older checkpoint, gets its default.

    Args:
        settings: {name: value}, from the command line or a checkpoint.

    Returns:
        {name: value}.

    Raises:
        InputError: two flags name different methods, or a flag names no method.
    """
    settings = DEFAULTS | settings
    modality, modulation = settings.pop("modality"), settings.pop("modulation")
    left_out = [name for name in ("no_mgt", "no_ugt") if settings.pop(name)]
    named = {f"--modality {modality}": modality} if modality in METHODS else {}
    if modulation not in (None, "Normal"):
        named[f"--modulation {modulation}"] = str(modulation).lower()
    if left_out:
        named[" ".join(f"--{name}" for name in left_out)] = "+".join(left_out)
    method = settings["method"]
    if method is not None and not (named and set(named.values()) <= VARIANTS.get(method, {method})):
        named[f"--method {method}"] = method
    if len(set(named.values())) > 1:
        raise InputError(f"{' and '.join(named)}: different methods; leave out all but one")
    method = next(iter(named.values()), "dgl")
    if method not in METHODS:
        raise InputError(f"{next(iter(named))}: not one of {', '.join(METHODS)}; name one of them")
    if modality == "full" != METHODS[method].modality:
        raise InputError(f"--method {method}: trains one encoder; leave out --modality full")
    others = {name for name, flag in METHOD_FLAGS.items() if method not in flag.methods}
    settings = {name: value for name, value in settings.items() if name not in others}
    return settings | {"method": method, "modality": METHODS[method].modality}


def check_flags(settings, typed):
    """Check that the flags fit the method: reject flags of other methods, and require those that the method needs.

    For flags of other methods in AUTHORS_FLAGS, which the authors' scripts always set, print a warning only.

    Args:
        settings: resolved Namespace.
        typed: the flags that were typed, {name: value}.

    Raises:
        InputError: a flag does not fit; the message names it and what to leave out or to add.
    """
    method, entry = settings.method, METHODS[settings.method]
    for name, flag in METHOD_FLAGS.items():
        if name not in typed or method in flag.methods:
            continue
        if name not in AUTHORS_FLAGS:
            raise InputError(f"--{name}: a flag of --method {' or '.join(flag.methods)}, not of {method}; leave it out")
        print(f"warning: --{name}: no effect with --method {method}", file=sys.stderr)
    if entry.own_fusion and settings.fusion_method != "concat":
        raise InputError(
            f"--fusion_method {settings.fusion_method}: --method {method} has its own fusion; leave it out"
        )
    own_heads = entry.own_heads or any(getattr(settings, f"{name}_unimodal", 0) for name in ("inforeg", "relearn"))
    if settings.alone == "zeros" and (FUSION_MODULES[settings.fusion_method].zeros or own_heads):
        raise InputError(f"--alone zeros: no effect with --method {method} and {settings.fusion_method}; leave it out")
    if (
        settings.log_suppression
        and entry.modality == "full"
        and (entry.own_fusion or settings.fusion_method not in SUMS)
    ):
        flag = f"--method {method}" if entry.own_fusion else f"--fusion_method {settings.fusion_method}"
        raise InputError(f"--log_suppression: needs {' or '.join(SUMS)} fusion, not {flag}; leave it out")
    for need in entry.needs if settings.train or settings.gradient_report else ():
        if not any(getattr(settings, name) for name in need.split(" or ")):
            raise InputError(f"--method {method}: needs --{need.replace(' or ', ' or --')}; add it")
    if settings.freeze and method == "relearn":
        raise InputError(f"--freeze {settings.freeze}: --method relearn changes all encoders; leave it out")
    if settings.freeze in ENCODERS and settings.modality not in ("full", settings.freeze):
        raise InputError(
            f"--freeze {settings.freeze}: --method {method} has no {settings.freeze} encoder; leave it out"
        )
    if settings.fusion_method == "mmtm" and method == "umt":
        raise InputError(
            "--fusion_method mmtm: --method umt needs features of whole encoders; use concat or another fusion"
        )
    if settings.fusion_method == "bilinear" and settings.backbone == "resnet50":
        raise InputError("--fusion_method bilinear: 34 GB of weights with --backbone resnet50; change one of the two")
    starts, ends = getattr(settings, "modulation_starts", 0), getattr(settings, "modulation_ends", math.inf)
    if starts > ends:
        raise InputError(f"--modulation_starts {starts}: greater than --modulation_ends {ends}; lower it")


def describe(settings):
    """Return the label of a run's method, and the value of its tuned flag or None: (label, value)."""
    entry = METHODS[settings["method"]]
    return entry.label, settings[entry.tuned_flag] if entry.tuned_flag else None


def build_method(settings, model):
    """Return the method that the settings name.

    Args:
        settings: a resolved Namespace, or a dict, which is resolved here.
        model: AVClassifier with initial weights. The method may replace its fusion module.

    Raises:
        InputError: a flag of the method does not fit the model.
    """
    settings = Namespace(**resolve(settings)) if isinstance(settings, dict) else settings
    return METHODS[settings.method].method_class(settings, model)
