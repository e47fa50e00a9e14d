"""AV-MNIST in miniature: recordings and handwritten digits, paired, read, trained and validated; and bad raw files.

Every picture is noise of its own, so that it is known again behind the loss of its lesser components.
"""

import gzip
import struct

import cv2
import numpy as np
import pytest
import soundfile
import torch

from data.AVMNIST import make_pairs
from dataset import build_dataset
from tests.conftest import run_fork, run_here
from tests.test_datasets import settings, train_and_validate
from utils.batches import IMAGENET_MEAN, IMAGENET_STD
from utils.files import LFS_HEADER

SPEAKERS, TAKES = ("jackson", "theo"), (0, 4, 5, 12)
TRAIN, TEST = 60, 50  # pictures of MNIST's sets, of each digit 6 and 5


def write_idx(path, values):
    """An array of bytes as MNIST's files hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def root(tmp_path):
    """The raw form: 80 recordings, each a tone of its own, and 110 pictures."""
    root, rng = tmp_path / "AV-MNIST", np.random.default_rng(0)
    (root / "recordings").mkdir(parents=True)
    for number, clip_id in enumerate(f"{d}_{who}_{take}" for d in range(10) for who in SPEAKERS for take in TAKES):
        tone = np.sin(2 * np.pi * (200 + 40 * number) * np.arange(3000 + number) / 8000)
        soundfile.write(root / "recordings" / f"{clip_id}.wav", 0.5 * tone, 8000)
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        digits = rng.permutation(np.arange(count) % 10)
        strokes = rng.integers(0, 256, (count, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
        write_idx(root / "MNIST" / "raw" / f"{name}-images-idx3-ubyte.gz", strokes)
        write_idx(root / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte.gz", digits)
    return root


def raw_digits(root, name):
    """MNIST's set, read by hand: pictures (N, 784) and digits (N,)."""
    images, labels = (
        gzip.decompress((root / "MNIST" / "raw" / f"{name}-{kind}-ubyte.gz").read_bytes())
        for kind in ("images-idx3", "labels-idx1")
    )
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784).astype(float), np.frombuffer(
        labels, np.uint8, offset=8
    )


def leading_part(fitted, pictures, share):
    """Pictures (N, 784) with the fewest leading components that hold the share of the variance, by an SVD."""
    mean = fitted.mean(axis=0)
    _, values, directions = np.linalg.svd(fitted - mean, full_matrices=False)
    count = np.argmax(np.cumsum(values**2) / np.sum(values**2) > share) + 1
    return mean + (pictures - mean) @ directions[:count].T @ directions[:count]


def tree(root):
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_every_recording_gets_a_picture_of_its_digit_and_none_is_used_twice(root, share):
    run_fork("data/AVMNIST/make_pairs.py", "--root", root, "--pca", share)
    fitted, _ = raw_digits(root, "train")
    for split, name, of_split in (("train", "train", (5, 12)), ("test", "t10k", (0, 4))):
        rows = [line.split(",") for line in (root / f"{split}.csv").read_text().splitlines()]
        ids = {f"{digit}_{who}_{take}": str(digit) for digit in range(10) for who in SPEAKERS for take in of_split}
        assert dict(rows) == ids and len(rows) == len(ids)
        pictures, digits = raw_digits(root, name)
        known = leading_part(fitted, pictures, share).clip(0, 255)
        used = []
        for clip_id, digit in ids.items():
            picture = cv2.imread(str(root / "Image-01-FPS" / clip_id / "00000.png"), cv2.IMREAD_UNCHANGED)
            assert picture.shape == (28, 28) and picture.dtype == np.uint8
            distance = abs(known - picture.reshape(784)).max(axis=1)
            used.append(distance.argmin())
            assert distance.min() < 0.51 and digits[used[-1]] == int(digit)
        assert len(set(used)) == len(used)


def test_a_seed_gives_the_same_again_and_another_replaces_only_when_told(root, capsys):
    run_here(make_pairs, "--root", root)
    first = tree(root)
    run_here(make_pairs, "--root", root)
    assert tree(root) == first
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_here(make_pairs, "--root", root, "--seed", 1)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1 and "00000.png" in error and "--overwrite" in error
    assert tree(root) == first
    run_here(make_pairs, "--root", root, "--seed", 1, "--overwrite")
    second = tree(root)
    changed = {name for name in first if first[name] != second[name]}
    assert second.keys() == first.keys() and len(changed) > 40 and all(name.endswith(".png") for name in changed)


def test_lists_of_the_users_own_are_kept(root, capsys):
    lists = root.parent / "lists"
    lists.mkdir()
    (lists / "test.csv").write_text("0_theo_0,0\n")
    with pytest.raises(SystemExit) as end:
        run_here(make_pairs, "--root", root, "--split_path", lists)
    assert end.value.code == 2 and f"{lists / 'test.csv'}: differs" in capsys.readouterr().err
    assert tree(lists) == {"test.csv": b"0_theo_0,0\n"} and not (root / "Image-01-FPS").exists()


def test_fewer_takes_to_train_on_of_every_speaker_and_digit(root, tmp_path):
    """The same pairs and the same test list; another seed draws others, once its pairs are there."""
    run_here(make_pairs, "--root", root)
    whole = tree(root)
    few = ["--root", root, "--takes", 1, "--split_path"]
    for name in ("few", "again"):
        run_here(make_pairs, *few, tmp_path / name)
    rows = [line.split(",") for line in (tmp_path / "few" / "train.csv").read_text().splitlines()]
    assert sorted(clip_id.rpartition("_")[0] for clip_id, _ in rows) == sorted(
        f"{digit}_{who}" for digit in range(10) for who in SPEAKERS
    )
    assert {clip_id.rpartition("_")[2] for clip_id, _ in rows} == {"5", "12"}  # drawn, not the first
    assert {f"{clip_id},{digit}" for clip_id, digit in rows} <= {*whole["train.csv"].decode().split()}
    assert tree(tmp_path / "few") == tree(tmp_path / "again") and tree(root) == whole
    assert (tmp_path / "few" / "test.csv").read_bytes() == whole["test.csv"]


def test_noise_of_a_known_ratio_that_falls_with_frequency(root, tmp_path, capsys):
    """Recordings and their pairs stay; noise is drawn by the seed for each recording, and is the same again."""
    run_here(make_pairs, "--root", root)
    whole = tree(root)
    for name in ("noise", "again"):
        run_here(make_pairs, "--root", root, "--noise", 6, "--split_path", tmp_path / name)
    assert tree(root) == whole and tree(tmp_path / "noise") == tree(tmp_path / "again")
    power, noises = [], {}
    for path in sorted((root / "recordings").iterdir()):
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
    with pytest.raises(SystemExit) as end:
        run_here(make_pairs, "--root", root, "--noise", 6)
    assert end.value.code == 2 and "--split_path" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [(0, 0), (1, 0)], ids=["first", "overwritten"])
def test_interrupted_it_leaves_no_list_and_ends_the_same(root, monkeypatch, seeds):
    run_here(make_pairs, "--root", root)
    whole = tree(root)
    if seeds[0] == seeds[1]:
        for path in (*root.glob("*.csv"), *root.glob("Image-01-FPS/*/*")):
            path.unlink()
    else:
        run_here(make_pairs, "--root", root, "--seed", seeds[0], "--overwrite")
    replacing, calls = make_pairs.replacing, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return replacing(path)

    flags = ["--root", root, "--seed", seeds[1], "--overwrite"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(make_pairs, "replacing", interrupted)
        run_here(make_pairs, *flags)
    assert end.value.code == 130 and not list(root.glob("*.csv")) and tree(root) != whole
    run_here(make_pairs, *flags)
    assert tree(root) == whole


def test_missing_recordings_are_told_and_the_others_paired(root, capsys):
    for path in root.glob("recordings/3_*"):
        path.unlink()
    run_here(make_pairs, "--root", root)
    output = capsys.readouterr().out
    assert f"{root / 'train.csv'}: 36 clips" in output and "72 recordings are there, the whole set has 3000" in output
    assert not (root / "Image-01-FPS" / "3_theo_0").exists()


def spoil_raw(root, damage):
    """Spoil the raw form; returns what the message has to name."""
    raw, recordings = root / "MNIST" / "raw", root / "recordings"
    images, labels = raw / "train-images-idx3-ubyte.gz", raw / "t10k-labels-idx1-ubyte.gz"
    wav = recordings / "7_theo_5.wav"
    if damage == "no pictures":
        images.unlink()
    elif damage == "cut short":
        images.write_bytes(images.read_bytes()[:-2000])
    elif damage == "a wrong byte":
        content = bytearray(images.read_bytes())
        content[len(content) // 2] ^= 255
        images.write_bytes(content)
    elif damage == "a page in its place":
        images.write_text("<html>not found</html>")
    elif damage == "packed empty":
        images.write_bytes(gzip.compress(b""))
    elif damage == "packed short":
        images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:5000]))
    elif damage == "labels for pictures":
        images.write_bytes(labels.read_bytes())
    elif damage == "pictures of another size":
        write_idx(images, np.zeros((TRAIN, 32, 32)))
    elif damage == "fewer labels":
        write_idx(labels, np.arange(TEST - 1) % 10)
        return "t10k-images-idx3-ubyte.gz: 50 x 28 x 28 values for 49 labels"
    elif damage == "too few of a digit":
        write_idx(labels, np.arange(TEST) % 9)
        return "0 pictures of 9 for 4 recordings"
    else:
        wav.unlink()
        if damage == "no recordings":
            for path in recordings.iterdir():
                path.unlink()
            return f"{recordings}: no recording"
        if damage == "no training recordings":
            for path in (*recordings.glob("*_5.wav"), *recordings.glob("*_12.wav")):
                path.unlink()
            return f"{recordings}: no recording with a take from 5 on"
        if damage == "pointer":
            wav.write_bytes(LFS_HEADER + b"/v1")
        elif damage == "truncated":
            wav.write_bytes((recordings / "7_theo_12.wav").read_bytes()[:1000])
        elif damage == "empty":
            wav.touch()
        elif damage == "silent":
            soundfile.write(wav, [], 8000)
        elif damage == "another name":
            (recordings / "seven.wav").touch()
            return "seven"
        return str(wav)
    return str(images)


DAMAGES = ["no pictures", "cut short", "a wrong byte", "a page in its place", "packed empty", "packed short"]
DAMAGES += ["labels for pictures", "pictures of another size", "fewer labels", "too few of a digit"]
DAMAGES += ["no recordings", "no training recordings", "pointer", "truncated", "empty", "silent", "another name"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_raw_files_are_one_line_that_names_them(root, capsys, damage):
    named = spoil_raw(root, damage)
    before = tree(root)
    with pytest.raises(SystemExit) as end:
        run_here(make_pairs, "--root", root)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1 and named in error and "; " in error, error
    assert tree(root) == before


def test_from_raw_files_to_a_validated_checkpoint(forking, root):
    run_here(make_pairs, "--root", root, "--split_path", root.parent)
    args = settings("AVMNIST", root, split_path=root.parent)
    dataset = build_dataset(args, "test")
    assert len(dataset) == 40 and dataset.classes == tuple("0123456789")
    window = np.hanning(257)[:-1]
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for clip, (inputs, label) in zip(dataset.clips, dataset, strict=True):
        (spectrogram,), frames = inputs["audio"], inputs["visual"]
        assert clip.id[0] == dataset.classes[label]
        samples, _ = soundfile.read(clip.wav)
        second = np.pad(np.tile(samples, 3)[:8000], 128)
        parts = np.stack([window * second[64 * k : 64 * k + 256] for k in range(126)])
        assert spectrogram.shape == (129, 126)
        assert np.allclose(spectrogram.T.exp(), abs(np.fft.rfft(parts)), atol=1e-4)
        picture = cv2.imread(f"{clip.folder}/00000.png", cv2.IMREAD_UNCHANGED)
        shown = frames[:, 0].numpy() * std + mean
        assert frames.shape == (3, 1, 32, 32) and abs(shown - shown[0]).max() < 1e-5  # grey
        assert abs(cv2.resize(picture, (32, 32)) / 255 - shown[0]).max() < 0.02
    output, used = train_and_validate(forking, "avmnist_dgl.sh", args, root.parent)
    assert "AVMNIST train: 30 clips" in output and used["val_ratio"] == 0.1
    assert torch.load(root.parent / "run" / "best.pth", weights_only=True)["settings"]["dataset"] == "AVMNIST"
