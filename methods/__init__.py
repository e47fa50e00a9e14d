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

from models import ENCODERS, check_encoders
from utils.errors import InputError
from utils.options import at_least, one_of, share, three_weights


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

    `modality` is that of the model it trains. Called with (args, model), an entry gives the rule as its class does.
    `needs`: flags it is not trained without, "x or y" for one of two; with `own_fusion` it ignores --fusion_method.
    `runs`: flags that name other rules' runs, of the same seed; {name} stands for the folder of a run of that rule.
    """

    label: str
    where: str
    flags: tuple[Flag, ...] = ()
    tuned: str | None = None
    modality: str = "full"
    runs: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    own_fusion: bool = False

    def __call__(self, args, model):
        module, _, name = self.where.rpartition(".")
        return getattr(importlib.import_module(module), name)(args, model)


NUMBER, COUNT = at_least(0, float), at_least(0)
ALPHA = Flag("alpha", NUMBER, 4.0, "weight of the unimodal losses, the one value to tune: try 1 to 8")
WINDOW = (
    Flag("modulation_starts", COUNT, 0, "first epoch, counted from 0, that is modulated", "EPOCH"),
    Flag("modulation_ends", COUNT, 50, "last epoch, counted from 0, that is modulated", "EPOCH"),
)
OGM = (Flag("ogm_alpha", NUMBER, 0.1, "strength of the modulation"), *WINDOW)
AGM = (
    Flag("agm_alpha", NUMBER, 1.0, "strength of the modulation"),
    Flag("agm_mask", one_of("shared", "passes"), "shared", "shared: one masked clip; passes: whole batches"),
    Flag("agm_ends", COUNT, 20, "last epoch, counted from 0, that is modulated", "EPOCH"),
)
PMR = (
    Flag("pmr_alpha", NUMBER, 1.0, "weight of the slower modality's prototype loss"),
    Flag("pmr_mu", NUMBER, 0.01, "weight of the leading modality's entropy"),
    Flag("pmr_momentum", share, 0.2, "part of the old prototypes in the new, 0 to 1"),
    Flag("pmr_entropy", COUNT, 10, "epochs, from the first, with the entropy", "EPOCHS"),
    Flag("pmr_ends", COUNT, 70, "last epoch, counted from 0, that is rebalanced", "EPOCH"),
    Flag("pmr_rule", one_of("paper", "code"), "paper", "as the paper, or as the published code"),
)
MMPARETO = (
    Flag("mmpareto_gamma", NUMBER, 1.5, "factor of the encoders' gradients"),
    Flag("mmpareto_rescale", one_of("encoder", "tensor"), "encoder", "what has its length restored as one"),
)
RELEARN = (
    Flag("relearn_lambda", NUMBER, 3.0, "strength of the way back"),
    Flag("relearn_every", at_least(1), 20, "epochs between two of them", "EPOCHS"),
    Flag("relearn_times", COUNT, 3, "how often at most", "N"),
)
UMT = (
    Flag("umt_audio", str, None, "audio teacher, best.pth of a run of --method audio", "FILE"),
    Flag("umt_visual", str, None, "visual teacher, likewise", "FILE"),
    Flag("umt_lambda", NUMBER, 10.0, "weight of the distance to them, to tune: try 1, 10, 50"),
)
INFOREG = (
    Flag("inforeg_beta", NUMBER, 0.9, "strength of the regulation"),
    Flag("inforeg_k", at_least(-math.inf, float), 0.04, "rise of an encoder's trace above which it is regulated"),
    Flag("inforeg_unimodal", NUMBER, 0.0, "weight of unimodal losses with heads of their own; InfoReg* has 1"),
)
GBLEND = (
    Flag("gblend_runs", str, None, "finished runs of joint, audio, visual with --val_ratio", "DIR,DIR,DIR"),
    Flag("gblend_weights", three_weights, None, "weights of joint, audio and visual loss, say 0.2,0.5,0.3", "M,A,V"),
)
LFM = (Flag("lfm_weights", one_of("heuristic", "fitted"), "heuristic", "how match is weighted by epoch"),)
MLA = (Flag("mla_projection", one_of("on", "off"), "on", "off: plain alternation, as the published code"),)

RUNS = {"gblend_runs": "{joint},{audio},{visual}"}
TEACHERS = {"umt_audio": "{audio}/best.pth", "umt_visual": "{visual}/best.pth"}

METHODS = {  # in the order of tables
    "audio": Entry("audio alone", "methods.unimodal.Unimodal", modality="audio"),
    "visual": Entry("visual alone", "methods.unimodal.Unimodal", modality="visual"),
    "joint": Entry("joint", "methods.joint.Joint"),
    "ogm": Entry("OGM", "methods.ogm.OGM", OGM),
    "ogm_ge": Entry("OGM-GE", "methods.ogm.OGM_GE", OGM),
    "joint_uni": Entry("joint+uni", "methods.joint_uni.JointUni"),
    "gblend": Entry("G-Blending", "methods.gblend.GBlend", GBLEND, needs=("gblend_runs or gblend_weights",), runs=RUNS),
    "agm": Entry("AGM", "methods.agm.AGM", AGM),
    "pmr": Entry("PMR", "methods.pmr.PMR", PMR),
    "mmpareto": Entry("MMPareto", "methods.mmpareto.MMPareto", MMPARETO),
    "mla": Entry("MLA", "methods.mla.MLA", MLA, own_fusion=True),
    "lfm": Entry("LFM (heuristic)", "methods.lfm.LFM", LFM, own_fusion=True),
    "relearn": Entry("Re-learning", "methods.relearn.Relearn", RELEARN, needs=("val_ratio",)),
    "umt": Entry("UMT", "methods.umt.UMT", UMT, needs=("umt_audio", "umt_visual"), runs=TEACHERS),
    "inforeg": Entry("InfoReg", "methods.inforeg.InfoReg", INFOREG),
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
    """Refuse flags of other methods, warn of those that authors' scripts always have, and refuse what needs more flags.

    Args:
        args: the settings, resolved.
        typed: the flags that were typed, {name: value}.

    Raises:
        InputError: names the flag and what to leave out.
    """
    for flag, owners in flags().items():
        if flag.name not in typed or args.method in owners:
            continue
        if flag.name not in AUTHORS_FLAGS:
            raise InputError(f"--{flag.name}: of --method {' or '.join(owners)}, not of {args.method}; leave it out")
        print(f"warning: --{flag.name}: no effect with --method {args.method}", file=sys.stderr)
    entry = METHODS[args.method]
    if entry.own_fusion and args.fusion_method != "concat":
        raise InputError(f"--fusion_method {args.fusion_method}: --method {args.method} has its own; leave it out")
    for need in entry.needs if args.train or args.gradient_report else ():
        if not any(getattr(args, name) for name in need.split(" or ")):
            raise InputError(f"--method {args.method}: needs --{need.replace(' or ', ' or --')}; add it")
    check_encoders(args)
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


def build(args, n_classes, prepare=False):
    """The model that the settings describe, as it begins, and its training rule -> (AVClassifier, Method).

    Weights are drawn from PyTorch's generator: encoders, joint head, then what heads the rule adds. To be trained the
    model begins with --weights and is told what is frozen, and the rule is to `prepare` too, which may read other runs;
    InputError is raised where files are not there, or do not fit.
    """
    from models.basic_model import AVClassifier

    model = AVClassifier(n_classes, args.fusion_method, args.modality, args.backbone)
    method = build_method(args, model)
    if prepare:
        encoders = [net for net in ENCODERS if hasattr(model, net)]
        model.frozen = [net for net in encoders if args.freeze in (ENCODERS[net], "both")]
        if args.weights:
            from models.pretrained import begin_with

            begin_with(model, args.weights, args.backbone)
        method.prepare(model)
    return model, method
