"""AV-MNIST in miniature: recordings and handwritten digits, paired, read, trained and validated; and bad raw files.

Every image is noise of its own, so that it is recognised without its lesser components.
"""

import gzip
import shutil
import struct

import cv2
import librosa
import numpy as np
import pytest
import soundfile
import torch

from data.AVMNIST import make_pairs
from dataset import build_dataset
from tests.conftest import contents, run_here
from tests.test_datasets import settings, train_and_validate
from utils import files
from utils.batches import IMAGENET_MEAN, IMAGENET_STD
from utils.files import LFS_HEADER

SPEAKERS, TAKES = ("jackson", "theo"), (0, 4, 5, 12)
TRAIN, TEST = 60, 50  # images of MNIST's sets, of each digit 6 and 5
IMAGES, LABELS = "MNIST/raw/{}-images-idx3-ubyte.gz", "MNIST/raw/{}-labels-idx1-ubyte.gz"


def idx(values):
    """Return an array of bytes as MNIST's files hold it."""
    header = struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape)
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def mnist():
    """Return {MNIST's name of a set: (images (N, 28, 28), digits (N,))}."""
    rng, sets = np.random.default_rng(0), {}
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        digits = rng.permutation(np.arange(count) % 10)
        sets[name] = rng.integers(0, 256, (count, 7, 7)).repeat(4, axis=1).repeat(4, axis=2), digits
    return sets


@pytest.fixture(scope="module")
def raw(mnist, tmp_path_factory):
    """Return the raw form: 80 recordings, each a tone of its own, and 110 images; not to be changed by a test.

    One recording has a companion, as macOS writes it, which is no recording.
    """
    root = tmp_path_factory.mktemp("raw") / "AV-MNIST"
    (root / "recordings").mkdir(parents=True)
    for number, clip_id in enumerate(f"{d}_{who}_{take}" for d in range(10) for who in SPEAKERS for take in TAKES):
        tone = np.sin(2 * np.pi * (200 + 40 * number) * np.arange(3000 + number) / 8000)
        soundfile.write(root / "recordings" / f"{clip_id}.wav", 0.5 * tone, 8000)
    (root / "recordings" / "._0_theo_0.wav").write_bytes(b"\0\5\x16\7")
    (root / "MNIST" / "raw").mkdir(parents=True)
    for name, (images, digits) in mnist.items():
        (root / IMAGES.format(name)).write_bytes(idx(images))
        (root / LABELS.format(name)).write_bytes(idx(digits))
    return root


@pytest.fixture
def root(raw, tmp_path):
    """Return a copy of the raw form, to be changed."""
    return shutil.copytree(raw, tmp_path / "AV-MNIST")


def leading_part(fitted, images, share):
    """Return images (N, 784) with the fewest leading components that hold the share of the variance, by an SVD."""
    mean = fitted.mean(axis=0)
    _, values, directions = np.linalg.svd(fitted - mean, full_matrices=False)
    count = np.argmax(np.cumsum(values**2) / np.sum(values**2) > share) + 1
    return mean + (images - mean) @ directions[:count].T @ directions[:count]


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_every_recording_gets_an_image_of_its_digit_and_none_is_used_twice(root, mnist, share):
    run_here(make_pairs, "--root", root, "--pca", share)
    for split, name, of_split in (("train", "train", (5, 12)), ("test", "t10k", (0, 4))):
        rows = [line.split(",") for line in (root / f"{split}.csv").read_text().splitlines()]
        ids = {f"{digit}_{who}_{take}": str(digit) for digit in range(10) for who in SPEAKERS for take in of_split}
        assert dict(rows) == ids and len(rows) == len(ids)
        images, digits = mnist[name]
        known = leading_part(mnist["train"][0].reshape(-1, 784), images.reshape(-1, 784), share).clip(0, 255)
        used = set()
        for clip_id, digit in ids.items():
            image = cv2.imread(str(root / "Image-01-FPS" / clip_id / "00000.png"), cv2.IMREAD_UNCHANGED)
            assert image.shape == (28, 28) and image.dtype == np.uint8
            distance = abs(known - image.reshape(784)).max(axis=1)
            used.add(distance.argmin())
            assert distance.min() < 0.51 and digits[distance.argmin()] == int(digit)
        assert len(used) == len(ids)


def test_a_seed_gives_the_same_again_and_another_replaces_only_when_asked_to(root, rejected):
    run_here(make_pairs, "--root", root)
    first = contents(root)
    run_here(make_pairs, "--root", root)
    assert contents(root) == first
    error = rejected(make_pairs, "--root", root, "--seed", 1)
    assert "00000.png" in error and "--overwrite" in error and contents(root) == first
    run_here(make_pairs, "--root", root, "--seed", 1, "--overwrite")
    second = contents(root)
    changed = {name for name in first if first[name] != second[name]}
    assert second.keys() == first.keys() and len(changed) > 40 and all(name.endswith(".png") for name in changed)
    (root / "test.csv").write_text("0_theo_0,0\n")  # a list of the user's own
    assert f"{root / 'test.csv'}: has other content" in rejected(make_pairs, "--root", root, "--seed", 1)
    assert contents(root) == second | {"test.csv": b"0_theo_0,0\n"}


def test_fewer_takes_for_training_of_every_speaker_and_digit(root, tmp_path):
    """Check that pairs and test list stay the same, and that another seed draws other takes once its pairs exist."""
    run_here(make_pairs, "--root", root)
    whole = contents(root)
    for name in ("few", "again"):
        run_here(make_pairs, "--root", root, "--takes", 1, "--split_path", tmp_path / name)
    rows = (tmp_path / "few" / "train.csv").read_text().split()
    assert sorted(row.rpartition("_")[0] for row in rows) == sorted(f"{d}_{who}" for d in range(10) for who in SPEAKERS)
    assert {row.rpartition("_")[2].partition(",")[0] for row in rows} == {"5", "12"}  # drawn, not the first
    assert set(rows) <= {*whole["train.csv"].decode().split()}
    assert contents(tmp_path / "few") == contents(tmp_path / "again") and contents(root) == whole
    assert (tmp_path / "few" / "test.csv").read_bytes() == whole["test.csv"]


def test_noise_of_a_known_ratio_that_falls_with_frequency(root, tmp_path, rejected):
    """Check that recordings and pairs stay, and that the seed draws the same noise again for each recording."""
    run_here(make_pairs, "--root", root)
    whole = contents(root)
    for name in ("noise", "again"):
        run_here(make_pairs, "--root", root, "--noise", 6, "--split_path", tmp_path / name)
    assert contents(root) == whole and contents(tmp_path / "noise") == contents(tmp_path / "again")
    power, noises = [], {}
    for path in sorted((root / "recordings").glob("[!.]*")):
        clean, rate = soundfile.read(path)
        noisy, same_rate = soundfile.read(tmp_path / "noise" / "recordings" / path.name)
        assert (rate, len(clean)) == (same_rate, len(noisy)) and np.abs(noisy).max() <= 1
        scale = noisy @ clean / (clean @ clean)  # below 1 where the sum would have been clipped
        noises[path.stem] = noise = noisy / scale - clean
        assert 10 * np.log10((clean**2).mean() / (noise**2).mean()) == pytest.approx(6, abs=0.6)
        power.append(np.abs(np.fft.rfft(noise[:3000])) ** 2)
    low, high = np.mean(power, 0)[2:200].mean(), np.mean(power, 0)[750:1500].mean()
    assert 8 < low / high < 40  # a mean of 1/f is 21 times that an octave or more above
    assert not np.allclose(noises["0_theo_0"][:3000], noises["1_theo_0"][:3000], atol=0.05)
    assert "--split_path" in rejected(make_pairs, "--root", root, "--noise", 6)


@pytest.mark.parametrize("seed", [0, 1], ids=["first", "overwritten"])
def test_interrupted_it_leaves_no_list_and_ends_the_same(root, monkeypatch, seed):
    run_here(make_pairs, "--root", root)
    whole = contents(root)
    if seed:
        run_here(make_pairs, "--root", root, "--seed", seed, "--overwrite")
    else:
        for path in (*root.glob("*.csv"), *root.glob("Image-01-FPS/*/*")):
            path.unlink()
    replace_file, calls = files.replace_file, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return replace_file(path)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(files, "replace_file", interrupted)
        run_here(make_pairs, "--root", root, "--overwrite")
    assert end.value.code == 130 and not list(root.glob("*.csv")) and contents(root) != whole
    run_here(make_pairs, "--root", root, "--overwrite")
    assert contents(root) == whole


def test_missing_recordings_are_reported_and_the_others_paired(root, capsys):
    for path in root.glob("recordings/3_*"):
        path.unlink()
    run_here(make_pairs, "--root", root)
    output = capsys.readouterr().out
    assert f"{root / 'train.csv'}: 36 clips" in output and "72 recordings found, the whole set has 3000" in output
    assert not (root / "Image-01-FPS" / "3_theo_0").exists()


TRAIN_IMAGES, TEST_LABELS, WAV = IMAGES.format("train"), LABELS.format("t10k"), "recordings/7_theo_5.wav"
DAMAGES = {  # files, their content by the old one or None for none, and what the message has to name
    "no images": (TRAIN_IMAGES, None, TRAIN_IMAGES),
    "cut short": (TRAIN_IMAGES, lambda old: old[:-2000], TRAIN_IMAGES),
    "a wrong byte": (TRAIN_IMAGES, lambda old: old[:999] + bytes([old[999] ^ 255]) + old[1000:], TRAIN_IMAGES),
    "a page in its place": (TRAIN_IMAGES, lambda _: b"<html>not found</html>", TRAIN_IMAGES),
    "packed empty": (TRAIN_IMAGES, lambda _: gzip.compress(b""), TRAIN_IMAGES),
    "packed short": (TRAIN_IMAGES, lambda old: gzip.compress(gzip.decompress(old)[:5000]), TRAIN_IMAGES),
    "labels for images": (TRAIN_IMAGES, lambda _: idx(np.arange(TEST) % 10), TRAIN_IMAGES),
    "images of another size": (TRAIN_IMAGES, lambda _: idx(np.zeros((TRAIN, 32, 32))), TRAIN_IMAGES),
    "fewer labels": (TEST_LABELS, lambda _: idx(np.arange(TEST - 1) % 10), ": 50 x 28 x 28 values for 49 labels"),
    "too few of a digit": (TEST_LABELS, lambda _: idx(np.arange(TEST) % 9), "0 images of 9 for 4 recordings"),
    "no recordings": ("recordings/*", None, "/recordings: no recording"),
    "no training recordings": ("recordings/*_[51]*", None, "/recordings: no recording with a take from 5 on"),
    "pointer": (WAV, lambda _: LFS_HEADER + b"/v1", WAV),
    "truncated": (WAV, lambda old: old[:1000], WAV),
    "empty": (WAV, lambda _: b"", WAV),
    "silent": (WAV, lambda old: old[:40] + bytes(4), WAV),
    "another name": ("recordings/seven.wav", lambda _: b"", "seven"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_raw_files_are_one_line_that_names_them(root, rejected, damage):
    pattern, change, named = DAMAGES[damage]
    for path in list(root.glob(pattern)) or [root / pattern]:
        content = change and change(path.read_bytes() if path.exists() else b"")
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    before = contents(root)
    error = rejected(make_pairs, "--root", root)
    assert named in error and "; " in error and contents(root) == before
    assert damage != "fewer labels" or IMAGES.format("t10k") in error


def test_from_raw_files_to_a_validated_checkpoint(forking, root):
    run_here(make_pairs, "--root", root, "--split_path", root.parent)
    args = settings("AVMNIST", root, split_path=root.parent)
    dataset = build_dataset(args, "test")
    assert len(dataset) == 40 and dataset.classes == tuple("0123456789")
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for clip, (inputs, label) in zip(dataset.clips, dataset, strict=True):
        (spectrogram,), frames = inputs["audio"], inputs["visual"]
        assert clip.id[0] == dataset.classes[label]
        second = np.resize(soundfile.read(clip.wav)[0], 8000)
        assert spectrogram.shape == (129, 126)
        assert np.allclose(spectrogram.exp(), abs(librosa.stft(second, n_fft=256, hop_length=64)), atol=1e-4)
        image = cv2.imread(f"{clip.folder}/00000.png", cv2.IMREAD_UNCHANGED)
        shown = frames[:, 0].numpy() * std + mean
        assert frames.shape == (3, 1, 32, 32) and abs(shown - shown[0]).max() < 1e-5  # grey
        assert abs(cv2.resize(image, (32, 32)) / 255 - shown[0]).max() < 0.02
    output, used = train_and_validate(forking, "avmnist_dgl.sh", args, root.parent)
    assert "AVMNIST train: 30 clips" in output and used["val_ratio"] == 0.1
    assert torch.load(root.parent / "run" / "best.pth", weights_only=True)["settings"]["dataset"] == "AVMNIST"


def test_recordings_with_two_channels_and_values_that_are_not_finite(tmp_path):
    path = tmp_path / "0_theo_0.wav"
    soundfile.write(path, np.ones((4000, 2)) * [0.5, 0.1], 8000)
    assert make_pairs.add_noise(path, 0, np.random.default_rng(0))[:4] == b"RIFF"
    soundfile.write(path, np.array([0.1, np.nan] * 100), 8000, subtype="FLOAT")
    assert make_pairs.audio_fault(path) == "has samples that are not finite"
