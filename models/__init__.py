"""What --help lists of the models, without the seconds that PyTorch takes to import."""

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
