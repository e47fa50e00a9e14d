"""The clip reader against librosa and PIL, and its randomness as a function of (seed, epoch, clip) alone."""

import os
from argparse import Namespace
from dataclasses import replace

import librosa
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchvision.transforms import v2

from data.demo.make_clips import make_voice
from dataset import build_dataset
from dataset.base import AudioSettings, Clip
from dataset.clips import Decoder, load_waveform, log_spectrogram
from dataset.loader import build_loader
from tests.conftest import data_flags, settings_of
from utils.errors import InputError

CREMAD_AUDIO = AudioSettings(rate=22050, seconds=3, n_fft=512, hop=353)


def settings(root, **changes):
    flags = ["--image_size", 64, "--cache_gb", 1, "--batch_size", 4, "--num_workers", 0]
    return Namespace(**vars(settings_of(*data_flags(root), *flags)) | changes)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (8000, 1), (22050, 1), (44100, 2)])
def test_spectrogram_equals_librosas(tmp_path, rate, channels):
    voice, _ = make_voice("HAP", 1.7, np.random.default_rng(3))
    voice = np.stack([voice * (1 - 0.3 * k) for k in range(channels)], axis=1)
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice, rate, subtype="PCM_16")

    samples, _ = librosa.load(path, sr=22050)
    repeated = np.tile(samples, 1 + 66150 // len(samples))[:66150].clip(-1, 1)
    magnitude = np.abs(librosa.stft(repeated, n_fft=512, hop_length=353))
    expected = np.log(magnitude + 1e-7)

    ours = np.resize(load_waveform(path, 22050), 66150)
    ours = log_spectrogram(torch.from_numpy(ours), CREMAD_AUDIO).numpy()
    assert ours.shape == expected.shape == (257, 188)
    audible = magnitude > 1e-3 * magnitude.max()
    assert audible.mean() > 0.05
    assert np.abs(ours - expected)[audible].max() < 1e-3


def test_amplitude_is_clipped():
    loud = torch.full((66150,), 2.5)
    assert torch.equal(log_spectrogram(loud, CREMAD_AUDIO), log_spectrogram(torch.ones_like(loud), CREMAD_AUDIO))


@pytest.mark.parametrize("sides", [(360, 480), (64, 64), (40, 500), (501, 30)])
def test_pictures_are_augmented_as_by_torchvision(corpus, sides):
    """Draws and pixels are those of its own transforms, to the bit."""
    dataset = build_dataset(settings(corpus), "train")
    whole = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip()])
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    picture = torch.from_numpy(np.array(Image.fromarray(small).resize(sides[::-1])))
    for seed in range(50):
        torch.manual_seed(seed)
        expected = whole(picture.permute(2, 0, 1))
        torch.manual_seed(seed)
        assert torch.equal(dataset.augment(picture).permute(2, 0, 1), expected)


def test_evaluation_frames_equal_pil(corpus):
    dataset = build_dataset(settings(corpus, image_size=100), "test")
    for i in range(3):
        clip, (inputs, label) = dataset.clips[i], dataset[i]
        frames = inputs["visual"]
        assert inputs["audio"].shape == (1, 257, 188) and frames.shape == (3, 1, 100, 100)
        assert label == dataset.classes.index(clip.id.split("_")[2])
        image = Image.open(os.path.join(clip.folder, clip.frames[len(clip.frames) // 2])).convert("RGB")
        image = image.resize((100, 100), Image.BILINEAR)
        expected = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert np.abs(frames[:, 0].numpy() - expected.transpose(2, 0, 1)).max() < 0.03


def test_evaluation_is_deterministic_and_evenly_spaced(corpus):
    dataset = build_dataset(settings(corpus, num_frame=2), "test")
    (first, _), (second, _) = dataset[0], dataset[0]
    assert list(first) == ["audio", "visual"] and all(torch.equal(first[name], second[name]) for name in first)

    def chosen(num_frame, available):
        clip = Clip("", "", "", tuple(range(available)), 0)
        return replace(dataset.decoder, num_frame=num_frame).frames(clip)

    assert chosen(2, 2) == [0, 1] and chosen(2, 8) == [2, 6]
    assert [chosen(1, available) for available in (1, 2, 3, 10)] == [[0], [1], [1], [5]]


def test_training_frames_are_drawn_in_order_of_time(corpus, monkeypatch):
    dataset = build_dataset(settings(corpus), "train")
    dataset.clips = [dataset.clips[0]._replace(frames=tuple(range(10)))]
    dataset.decoder = replace(dataset.decoder, num_frame=3)
    drawn, image = [], torch.zeros(40, 40, 3, dtype=torch.uint8)
    monkeypatch.setattr(Decoder, "waveform", lambda *_: np.zeros(66150, np.float32))
    monkeypatch.setattr(Decoder, "frame", lambda _, clip, k: drawn.append(k) or image)
    for epoch in range(50):
        dataset.epoch = epoch
        dataset[[0]]
    drawn = [tuple(drawn[i : i + 3]) for i in range(0, 150, 3)]
    assert all(a < b < c for a, b, c in drawn) and len(set(drawn)) > 20


def read_epochs(root, **changes):
    """All batches of two epochs, shuffled and augmented, with the global generator disturbed in between."""
    loader = build_loader(settings(root, batch_size=6, **changes), "train", torch.device("cpu"))
    batches = []
    for epoch in range(2):
        loader.dataset.epoch = epoch
        torch.rand(7)
        for inputs, label in loader:
            batches.append(torch.cat([*(x.flatten(1) for x in inputs.values()), label[:, None]], dim=1))
    return torch.cat(batches[: len(batches) // 2]), torch.cat(batches[len(batches) // 2 :])


def test_training_data_follow_seed_epoch_and_clip_alone(corpus):
    first, second = read_epochs(corpus)
    assert len(first) == len(second) == 18
    for workers in (1, 4):
        again = read_epochs(corpus, num_workers=workers)
        assert torch.equal(again[0], first) and torch.equal(again[1], second)
    sounds = 257 * 188
    assert not torch.equal(first[:, :sounds], second[:, :sounds]), "the order did not change"

    def by_sound(rows):
        return rows[rows[:, :sounds].sum(1).argsort()]

    assert torch.equal(by_sound(first)[:, :sounds], by_sound(second)[:, :sounds]), "not every clip once an epoch"
    crops = (by_sound(first) != by_sound(second))[:, sounds:].any(dim=1)
    assert crops.all(), "crops did not change with the epoch"
    assert not torch.equal(read_epochs(corpus, random_seed=1)[0], first)


def test_clips_without_sound_or_frames_are_skipped_and_counted(corpus, tmp_path):
    listed = (corpus / "test.csv").read_text()
    (tmp_path / "test.csv").write_text("1099_D00_SAD_XX,SAD\n" + listed)
    dataset = build_dataset(settings(corpus, split_path=str(tmp_path)), "test")
    assert len(dataset) == 6 and dataset.skipped == ["1099_D00_SAD_XX"]
    with pytest.raises(InputError, match="none of the 7 clips"):
        build_dataset(settings(corpus, split_path=str(tmp_path), num_frame=50), "test")


def test_lists_with_byte_order_mark_and_windows_line_ends(corpus, tmp_path):
    listed = (corpus / "test.csv").read_text()
    (tmp_path / "test.csv").write_bytes(b"\xef\xbb\xbf" + listed.replace("\n", "\r\n").encode() + b"\r\n")
    plain = build_dataset(settings(corpus), "test")
    assert build_dataset(settings(corpus, split_path=str(tmp_path)), "test").clips == plain.clips


def test_held_out_clips_are_stratified_and_follow_the_seed(corpus):
    whole = {clip.id for clip in build_dataset(settings(corpus), "train").clips}
    held_out = []
    for seed in (0, 0, 1):
        args = settings(corpus, val_ratio=0.4, random_seed=seed)
        train, val = (build_dataset(args, split) for split in ("train", "val"))
        ids = {clip.id for clip in val.clips}
        assert ids | {clip.id for clip in train.clips} == whole and len(train) + len(val) == len(whole)
        assert sorted(clip.label for clip in val.clips) == list(range(6))  # of three clips of a class, one
        assert train.decoder.training and not val.decoder.training
        held_out.append(ids)
    assert held_out[0] == held_out[1] != held_out[2]
    args = settings(corpus, val_ratio=0.001)
    assert len(build_dataset(args, "val")) == 6, "every class keeps one clip at least"
    assert len(build_dataset(args, "test")) == 6
    assert len(build_dataset(settings(corpus, val_ratio=0.99), "train")) == 6
