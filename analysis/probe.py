"""How good are the encoders? A linear classifier on each encoder's frozen features."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from methods.features import as_vector
from utils.batches import to_device
from utils.errors import InputError


@torch.inference_mode()
def extract_features(model, loader, device):
    """Return every clip's features, {modality: (M, D)}, and labels (M,), numpy, in the loader's order.

    The model is left in evaluation mode.
    """
    model.eval()
    features, labels = {name: [] for name in model.modalities}, []
    for batch in loader:
        inputs, label = to_device(batch, device)
        labels.append(label.cpu())
        for name in model.modalities:
            features[name].append(as_vector(model.encode(name, inputs[name])).cpu())
    return {name: torch.cat(values).numpy() for name, values in features.items()}, torch.cat(labels).numpy()


def linear_probe(model, train_loader, test_loader, device):
    """Return the test accuracy of a logistic regression on each encoder's standardised features.

    The encoders stay as they are. This compares encoders of models with and without unimodal heads alike.

    Args:
        model: AVClassifier.
        train_loader, test_loader: clips without augmentation, as `predict` takes them.
        device: where the model is.

    Returns:
        {modality: accuracy}, 0 to 1.

    Raises:
        InputError: the training clips are all of one class.
    """
    (train, train_label), (test, test_label) = (
        extract_features(model, loader, device) for loader in (train_loader, test_loader)
    )
    if len(set(train_label)) < 2:
        raise InputError("--linear_probe: the training clips are all of one class; add clips of another to train.csv")
    accuracies = {}
    for name in model.modalities:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        accuracies[name] = float(classifier.fit(train[name], train_label).score(test[name], test_label))
    return accuracies
