"""How good are the encoders? A linear classifier on each one's frozen features, fitted anew."""

import torch

from utils.errors import InputError
from utils.training.device import to_device


@torch.inference_mode()
def extract_features(model, dataloader, device):
    """Every clip's features -> {"audio": (M, 512), "visual": (M, 512), "label": (M,)}, numpy, in the loader's order.

    A modality that the model lacks is left out. The model is left in evaluation mode.
    """
    model.eval()
    features = {"audio": [], "visual": [], "label": []}
    for batch in dataloader:
        spectrogram, frames, label = to_device(batch, device)
        features["label"].append(label.cpu())
        if hasattr(model, "audio_net"):
            features["audio"].append(model.encode_audio(spectrogram).cpu())
        if hasattr(model, "visual_net"):
            features["visual"].append(model.encode_video(frames).cpu())
    return {name: torch.cat(values).numpy() for name, values in features.items() if values}


def linear_probe(model, train_loader, test_loader, device):
    """Test accuracy of a logistic regression on each encoder's standardised features, fitted on the training clips.

    The encoders stay as they are. This compares encoders of models with and without unimodal heads alike.

    Args:
        model: AVClassifier.
        train_loader, test_loader: clips without augmentation, as `evaluate` takes them.
        device: where the model is.

    Returns:
        {"audio": .., "visual": ..}, each 0 to 1, None for a modality that the model lacks.

    Raises:
        InputError: the training clips are all of one class.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import, so only on demand
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = (extract_features(model, loader, device) for loader in (train_loader, test_loader))
    if len(set(train["label"])) < 2:
        raise InputError("--linear_probe: the training clips are all of one class; add clips of another to train.csv")
    accuracies = {"audio": None, "visual": None}
    for modality in accuracies.keys() & train.keys():
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        classifier.fit(train[modality], train["label"])
        accuracies[modality] = float(classifier.score(test[modality], test["label"]))
    return accuracies
