"""What --help lists of the models, without the seconds that PyTorch takes to import."""

FUSION_MODULES = {  # name -> class in models/fusion_modules.py
    "concat": "ConcatFusion_AUXI",
    "sum": "SumFusion_AUXI",
    "gated": "GatedFusion_AUXI",
    "film": "FiLM_AUXI",
    "bilinear": "BilinearFusion_AUXI",
}
MODALITIES = ("full", "audio", "visual")
