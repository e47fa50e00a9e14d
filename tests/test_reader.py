"""The clip reader against librosa, torchvision and PIL; its randomness depends on (seed, epoch, clip) alone."""

import io
import os
import struct
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
from dataset.base import Clip, list_frames
from dataset.clips import Decoder, load_waveform, log_spectrogram
from dataset.cremad import CREMAD
from dataset.loader import build_loader
from tests.conftest import data_flags, settings_of
from utils.errors import InputError


def settings(root, **changes):
    flags = ["--image_size", 64, "--cache_gb", 1, "--batch_size", 4, "--num_workers", 0]
    return Namespace(**vars(settings_of(*data_flags(root), *flags)) | changes)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (8000, 1), (22050, 1), (44100, 2)])
def test_spectrogram_equals_librosas(tmp_path, rate, channels):
    voice, _ = make_voice("HAP", 1.7, np.random.default_rng(3))
    voice = np.stack([voice * (1 - 0.3 * k) for k in range(channels)], axis=1)
    path = tmp_path / "voice.wav"
    for loudness in (1, 3):  # the amplitude is clipped
        soundfile.write(path, loudness * voice, rate, subtype="FLOAT")
        samples, _ = librosa.load(path, sr=22050)
        repeated = np.tile(samples, 1 + 66150 // len(samples))[:66150].clip(-1, 1)
        magnitude = np.abs(librosa.stft(repeated, n_fft=512, hop_length=353))
        ours = torch.from_numpy(np.resize(load_waveform(path, 22050), 66150))
        ours = log_spectrogram(ours, CREMAD.audio).numpy()
        assert ours.shape == magnitude.shape == (257, 188)
        audible = magnitude > 1e-3 * magnitude.max()
        assert audible.mean() > 0.05
        assert np.abs(ours - np.log(magnitude + 1e-7))[audible].max() < 1e-3


LIST = b"LIST\x04\0\0\0abcd"


@pytest.mark.parametrize(
    ("riff", "data", "subtype", "behind"),
    [
        (100, None, "PCM_16", b""),
        (0, None, "PCM_16", b""),
        (10**6, None, "PCM_16", b""),
        (0xFFFFFFFF, 0xFFFFFFFF, "PCM_16", b""),  # a stream
        (None, 0x7FFFF024, "PCM_16", b""),
        (100, None, "PCM_24", b""),
        (None, None, "PCM_16", LIST),
        (50, None, "PCM_16", LIST),
    ],
)
def test_all_samples_are_read_whatever_sizes_the_header_gives(tmp_path, riff, data, subtype, behind):
    samples, file = (8000 * np.sin(np.arange(16000) / 7)).astype("<i2"), io.BytesIO()
    soundfile.write(file, samples, 16000, subtype=subtype, format="WAV")
    content = bytearray(file.getvalue())
    for position, size in ((4, riff), (content.index(b"data") + 4, data)):
        if size is not None:
            struct.pack_into("<I", content, position, size)
    (tmp_path / "x.wav").write_bytes(content + behind)
    found = load_waveform(tmp_path / "x.wav", 16000)
    assert len(found) == 16000 and np.abs(found - samples / 2**15).max() < 1e-4


@pytest.mark.parametrize("sides", [(360, 480), (64, 64), (40, 500), (501, 30)])
def test_images_are_augmented_as_by_torchvision(corpus, sides):
    """Check that draws and pixels are those of its own transforms, to the bit."""
    dataset = build_dataset(settings(corpus), "train")
    whole = v2.Compose([v2.RandomResizedCrop(64), v2.RandomHorizontalFlip()])
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    image = torch.from_numpy(np.array(Image.fromarray(small).resize(sides[::-1])))
    for seed in range(50):
        torch.manual_seed(seed)
        expected = whole(image.permute(2, 0, 1))
        torch.manual_seed(seed)
        assert torch.equal(dataset.augment(image).permute(2, 0, 1), expected)


def test_evaluation_frames_equal_pil_and_are_the_same_again(corpus):
    dataset = build_dataset(settings(corpus, image_size=100), "test")
    for i in range(3):
        clip, (inputs, label), (again, _) = dataset.clips[i], dataset[i], dataset[i]
        assert list(inputs) == ["audio", "visual"] and all(torch.equal(inputs[name], again[name]) for name in inputs)
        assert inputs["audio"].shape == (1, 257, 188) and inputs["visual"].shape == (3, 1, 100, 100)
        assert label == dataset.classes.index(clip.id.split("_")[2])
        image = Image.open(os.path.join(clip.folder, clip.frames[len(clip.frames) // 2])).convert("RGB")
        image = image.resize((100, 100), Image.BILINEAR)
        expected = (np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert np.abs(inputs["visual"][:, 0].numpy() - expected.transpose(2, 0, 1)).max() < 0.03


def test_evaluation_frames_are_evenly_spaced_and_training_frames_drawn_in_order_of_time(corpus, monkeypatch):
    dataset = build_dataset(settings(corpus), "test")
    for num_frame, available, chosen in (
        (2, 2, [0, 1]),
        (2, 8, [2, 6]),
        (1, 1, [0]),
        (1, 2, [1]),
        (1, 3, [1]),
        (1, 10, [5]),
    ):
        clip = Clip("", "", "", tuple(range(available)), 0)
        assert replace(dataset.decoder, num_frame=num_frame).frames(clip) == chosen
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
    """Return all batches of two epochs, shuffled and augmented, with the global generator disturbed in between."""
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
    audio = 257 * 188
    assert not torch.equal(first[:, :audio], second[:, :audio]), "the order did not change"

    def by_audio(rows):
        return rows[rows[:, :audio].sum(1).argsort()]

    assert torch.equal(by_audio(first)[:, :audio], by_audio(second)[:, :audio]), "not every clip once an epoch"
    crops = (by_audio(first) != by_audio(second))[:, audio:].any(dim=1)
    assert crops.all(), "crops did not change with the epoch"
    assert not torch.equal(read_epochs(corpus, random_seed=1)[0], first)


def test_clips_without_audio_or_frames_are_skipped_and_lists_may_be_of_windows(corpus, tmp_path):
    """Check that a byte order mark, other ends of lines, and an empty last line are ignored."""
    listed = (corpus / "test.csv").read_text()
    text = "1099_D00_SAD_XX,SAD\n" + listed + "\n"
    (tmp_path / "test.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    dataset = build_dataset(settings(corpus, split_path=str(tmp_path)), "test")
    assert dataset.clips == build_dataset(settings(corpus), "test").clips and len(dataset) == 6
    assert dataset.skipped == ["1099_D00_SAD_XX"]
    with pytest.raises(InputError, match="none of the 7 clips"):
        build_dataset(settings(corpus, split_path=str(tmp_path), num_frame=50), "test")


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


def test_frames_are_in_order_of_their_numbers(tmp_path):
    for number in (99990, 100020, 99960):
        (tmp_path / f"{number}.jpg").touch()
    assert list_frames(tmp_path) == ("99960.jpg", "99990.jpg", "100020.jpg")
