"""Measure the quality of each encoder by a linear classifier on its frozen features."""

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from methods.features import as_vector
from utils.batches import to_device
from utils.errors import InputError


@torch.inference_mode()
def extract_features(model, loader, device):
    """Return the features {modality: (M, D)} and the labels (M,) of all clips, as numpy arrays in the loader's order.

    Afterwards, the model is in evaluation mode.
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

    The encoders stay unchanged. Encoders of models with and without unimodal heads are measured in the same way.

    Args:
        model: AVClassifier.
        train_loader, test_loader: loaders of clips without augmentation, as `predict` takes them.
        device: device of the model.

    Returns:
        {modality: accuracy}, 0 to 1.

    Raises:
        InputError: all training clips have the same class.
    """
    (train, train_label), (test, test_label) = (
        extract_features(model, loader, device) for loader in (train_loader, test_loader)
    )
    if len(set(train_label)) < 2:
        raise InputError(
            "--linear_probe: all training clips are of one class; add clips of other classes to the training list"
        )
    accuracies = {}
    for name in model.modalities:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        accuracies[name] = float(classifier.fit(train[name], train_label).score(test[name], test_label))
    return accuracies
