"""Batches: equal sizes in training, every clip once in evaluation, and fewer clips than a batch."""

import pytest
import torch

from dataset.loader import build_loader
from engine.checkpoint import load_model
from tests.conftest import rows_of, train
from tests.test_reader import settings
from utils.batches import to_device


def loader_of(corpus, split, **changes):
    return build_loader(settings(corpus, **changes), split, torch.device("cpu"))


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4] * 4), (9, [9] * 2), (10, [10]), (18, [18]), (64, [18])])
def test_training_batches_are_of_equal_size(corpus, batch_size, sizes):
    """Check that the rest of 18 clips is dropped, other clips each epoch; fewer clips than a batch are one batch."""
    loader, epochs = loader_of(corpus, "train", batch_size=batch_size), []
    for loader.dataset.epoch in range(3):
        batches = list(loader)
        assert [len(label) for _, label in batches] == sizes and len(loader) == len(sizes)
        assert all(len(x) == len(label) for inputs, label in batches for x in inputs.values())
        numbers = sum(loader.sampler.batches(), [])
        labels = torch.cat([label for _, label in batches]).tolist()
        assert labels == [loader.dataset.clips[number].label for number in numbers]
        assert len(set(numbers)) == len(numbers) == sum(sizes)
        epochs.append(numbers)
    assert epochs[0] != epochs[1] != epochs[2]
    assert sum(sizes) == 18 or len(set(map(frozenset, epochs))) > 1


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 2]), (6, [6]), (64, [6])])
def test_evaluation_takes_every_clip_once_in_order(corpus, batch_size, sizes):
    loader = loader_of(corpus, "test", batch_size=batch_size)
    labels = [label.tolist() for _, label in loader]
    assert [*map(len, labels)] == sizes and len(loader) == len(sizes)
    assert sum(labels, []) == [clip.label for clip in loader.dataset.clips]


def log_of(corpus, folder, *flags):
    """Train for three epochs on 18 clips; return the rows of the log without times."""
    train(corpus, folder, "--epochs", 3, "--learning_rate", 0.05, *flags)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(folder)]


@pytest.mark.parametrize("method", ["dgl", "visual"])
def test_fewer_clips_than_a_batch_are_one_batch_of_all(corpus, small, tmp_path, capsys, method):
    """Check that a run equals one whose batch size is the number of clips, and that a warning names the flag."""
    expected = log_of(corpus, tmp_path / "18", "--batch_size", 18, "--method", method)
    capsys.readouterr()
    for size in (19, 300):  # 300: BatchNorm is refreshed over 256 clips
        assert log_of(corpus, tmp_path / str(size), "--batch_size", size, "--method", method) == expected
        (warning,) = capsys.readouterr().err.splitlines()
        assert warning.startswith(f"warning: --batch_size {size}: only 18 training clips")
    assert len({row["fused"] for row in expected}) > 1  # the model learns, so that the accuracies differ


@pytest.mark.parametrize(("batch_size", "batches"), [(6, 3), (19, 1)])
def test_batchnorm_is_refreshed_with_the_epochs_batches(corpus, small, tmp_path, batch_size, batches):
    log_of(corpus, tmp_path / "run", "--batch_size", batch_size)
    model, _ = load_model(str(tmp_path / "run" / "last.pth"), {})
    loader = loader_of(corpus, "train", image_size=32, batch_size=batch_size)
    loader.dataset.epoch = 2
    convolution, batchnorm, *_ = model.encoder("audio")
    with torch.no_grad():
        maps = [convolution(to_device(batch, "cpu")[0]["audio"]).transpose(0, 1).flatten(1) for batch in loader]
    assert len(maps) == batches
    for found, statistic in ((batchnorm.running_mean, torch.mean), (batchnorm.running_var, torch.var)):
        expected = torch.stack([statistic(each, dim=1) for each in maps]).mean(dim=0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
