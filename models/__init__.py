"""What --help lists of the models, without the seconds that PyTorch takes to import."""

from utils.errors import InputError

FUSION_MODULES = {  # name -> class in models/fusion_modules.py
    "concat": "ConcatFusion_AUXI",
    "sum": "SumFusion_AUXI",
    "gated": "GatedFusion_AUXI",
    "film": "FiLM_AUXI",
    "bilinear": "BilinearFusion_AUXI",
}
BACKBONES = {  # name -> class in models/backbone.py
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
}
ENCODERS = {"audio_net": "audio", "visual_net": "visual"}  # of AVClassifier -> whose features
MODALITIES = ("full", "audio", "visual")


def check_encoders(args):
    """Refuse to freeze an encoder that the settings train or lack, and a fusion too wide for the encoders.

    Raises:
        InputError: names the flag and the remedy.
    """
    if args.freeze and args.method == "relearn":
        raise InputError(f"--freeze {args.freeze}: --method relearn changes both encoders; leave it out")
    if args.freeze in ENCODERS.values() and args.modality not in ("full", args.freeze):
        raise InputError(f"--freeze {args.freeze}: --method {args.method} has no such encoder; leave it out")
    if args.fusion_method == "bilinear" and args.backbone == "resnet50":
        raise InputError("--fusion_method bilinear: 34 GB of weights with --backbone resnet50; take another of the two")
