"""AV-MNIST: pair every spoken digit with a handwritten one, and write images and lists.

    python data/AVMNIST/make_pairs.py
    python data/AVMNIST/make_pairs.py --takes 10 --split_path train_test_data/AV-MNIST/takes10     # fewer to train on
    python data/AVMNIST/make_pairs.py --noise 0 --split_path train_test_data/AV-MNIST/noise0       # noisy recordings

Reads <root>/recordings/<digit>_<speaker>_<take>.wav and <root>/MNIST/raw/; writes <root>/Image-01-FPS/<id>/00000.png
and train.csv and test.csv, rows `<id>,<digit>`. Takes 0 to 4 of every speaker and digit are the test set, as in the
recordings' own split; its images come from MNIST's test images, the others from its training images.

As in the paper (Vielzeuf et al., "CentralNet", ECCV workshops 2018), images keep only the leading principal
components with a quarter of the energy, so that audio is the stronger modality. The paper adds recordings of noises
to the audio; --noise adds pink noise.
"""

import gzip
import io
import re
import sys
import zlib
from pathlib import Path
from tempfile import NamedTemporaryFile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import soundfile

from data.extraction import dataset_parser
from dataset.avmnist import AVMNIST
from dataset.wav import wav_fault
from utils.config import at_least, ratio
from utils.errors import InputError, run_script
from utils.files import write_files

RECORDINGS, TEST_TAKES = 3000, 5
SIDE = 28  # of an image, in pixels
SETS = {"train": "train", "test": "t10k"}  # split: MNIST's name of it


def parse_id(clip_id):
    """Return (digit, "train" or "test") of '<digit>_<speaker>_<take>'; raise InputError for another form."""
    parts = re.fullmatch(r"([0-9])_[^_]+_([0-9]+)", clip_id)
    if not parts:
        raise InputError(f"{clip_id}: not a recording, '<digit>_<speaker>_<take>'; move it out of the folder")
    return parts[1], "test" if int(parts[2]) < TEST_TAKES else "train"


def audio_fault(path):
    """Return why a recording cannot be used, "" if it can."""
    try:
        if fault := wav_fault(path):
            return fault
        with open(path, "rb") as file:
            samples, _ = soundfile.read(file)
        if not len(samples):
            return "holds no audio"
        return "" if np.isfinite(samples).all() else "has samples that are not finite"
    except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return "not a readable audio file"


def find_recordings(folder):
    """Return the recordings of a folder, {split: {id: digit}}, in the order of the ids.

    Raises:
        InputError: a split has no recording, or a recording has another name or is damaged.
    """
    recordings = {split: {} for split in SETS}
    for path in sorted(folder.glob("[!.]*.wav")):
        digit, split = parse_id(path.stem)
        if fault := audio_fault(path):
            raise InputError(f"{path}: {fault}; get it again, or remove it to pair the others")
        recordings[split][path.stem] = digit
    for split, ids in recordings.items():
        if not ids:
            takes = f"below {TEST_TAKES}" if split == "test" else f"from {TEST_TAKES} on"
            raise InputError(
                f"{folder}: no recording with a take {takes}; get them as described in data/AVMNIST/README.md"
            )
    return recordings


def read_idx(path, read):
    """Read a compressed file of MNIST with one of torchvision's readers; return an array.

    Raises:
        InputError: the file is missing or damaged, or is not this file of MNIST.
    """
    remedy = "get it again as described in data/AVMNIST/README.md"
    try:
        with gzip.open(path) as packed, NamedTemporaryFile() as plain:  # the readers need the path of an unpacked file
            plain.write(packed.read())
            plain.flush()
            return read(plain.name).numpy()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path}: truncated, damaged or no gzip file; {remedy}") from None
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError):  # the readers' errors
        raise InputError(f"{path}: not the MNIST file of this name; {remedy}") from None


def read_digits(folder, name):
    """Read MNIST's set `name`, "train" or "t10k"; return images (N, 784), bytes, and their digits (N,).

    Raises:
        InputError: a file is missing or damaged, or the two do not belong together.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file  # seconds to import

    paths = [folder / f"{name}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    images, digits = read_idx(paths[0], read_image_file), read_idx(paths[1], read_label_file)
    if images.shape != (len(digits), SIDE, SIDE):
        found = " x ".join(map(str, images.shape))
        raise InputError(f"{paths[0]}: {found} values for {len(digits)} labels; get both files again")
    return images.reshape(len(digits), SIDE**2), digits


def draw_pairs(recordings, digits, rng):
    """Draw an image of the same digit for every recording, none twice; return {id: number of the image}.

    Args:
        recordings: {id: digit}.
        digits: (N,), those of the images.

    Raises:
        InputError: a digit has fewer images than recordings.
    """
    pairs = {}
    for digit in AVMNIST.classes:
        ids = [clip_id for clip_id, spoken in recordings.items() if spoken == digit]
        numbers = rng.permutation(np.flatnonzero(digits == int(digit)))
        if len(numbers) < len(ids):
            raise InputError(
                f"MNIST/raw: only {len(numbers)} images of {digit} for {len(ids)} recordings, such as {ids[0]}; "
                "get MNIST again as described in data/AVMNIST/README.md"
            )
        pairs |= zip(ids, numbers[: len(ids)].tolist(), strict=True)
    return pairs


def draw_takes(recordings, takes, rng):
    """Draw up to `takes` recordings of every speaker and digit; return {id: digit} in the same order."""
    spoken = {}
    for clip_id in recordings:
        spoken.setdefault(clip_id.rpartition("_")[0], []).append(clip_id)
    drawn = {clip_id for ids in spoken.values() for clip_id in rng.permutation(ids)[:takes].tolist()}
    return {clip_id: digit for clip_id, digit in recordings.items() if clip_id in drawn}


def add_noise(path, decibels, rng):
    """Return a recording with pink noise (power proportional to 1 / frequency), as the bytes of a wav file.

    Args:
        decibels: ratio of the recording's mean power to the noise's.
    """
    samples, rate = soundfile.read(path, always_2d=True)
    samples = samples.mean(axis=1)
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)).clip(1)), len(samples))
    noise *= np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (decibels / 10))
    mixed = samples + noise
    content = io.BytesIO()
    soundfile.write(content, mixed / np.abs(mixed).max().clip(1), rate, subtype="PCM_16", format="WAV")
    return content.getvalue()


def main():
    parser = dataset_parser("Pair AV-MNIST's recordings with handwritten digits.", AVMNIST.root)
    parser.add_argument(
        "--split_path", type=Path, metavar="DIR", help="folder of the dataset's lists (default: --root)"
    )
    parser.add_argument(
        "--pca", type=ratio, default=0.25, metavar="R", help="share of the images' energy to keep (default: 0.25)"
    )
    parser.add_argument(
        "--takes",
        type=at_least(1),
        metavar="N",
        help="recordings of every speaker and digit that train.csv has, drawn by --seed (default: all)",
    )
    parser.add_argument(
        "--noise",
        type=at_least(-100, float),
        metavar="DB",
        help="write recordings with pink noise to <split_path>/recordings, at this signal-to-noise ratio in decibels",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of all draws (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace lists and images of another pairing")
    args = parser.parse_args()
    folder = args.split_path or args.root
    clean, noisy = Path(AVMNIST.audio_path.format(root=args.root)), folder / "recordings"
    if args.noise is not None and noisy.resolve() == clean.resolve():
        raise InputError(f"--noise: would overwrite the recordings in {clean}; add a --split_path other than --root")
    recordings = find_recordings(clean)
    mnist = {split: read_digits(args.root / "MNIST" / "raw", name) for split, name in SETS.items()}

    from sklearn.decomposition import PCA  # seconds to import

    pca, rng, files, lists = PCA(args.pca).fit(mnist["train"][0]), np.random.default_rng(args.seed), {}, {}
    for split, (images, digits) in mnist.items():
        pairs = draw_pairs(recordings[split], digits, rng)
        kept = pca.inverse_transform(pca.transform(images[list(pairs.values())]))
        kept = kept.round().clip(0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
        for clip_id, image in zip(pairs, kept, strict=True):
            path = args.root / AVMNIST().frames(split, clip_id, fps=1) / "00000.png"
            files[path] = cv2.imencode(".png", image)[1].tobytes()
        lists[split] = recordings[split]
    if args.takes:  # after the pairs, which are the same for every number of takes
        lists["train"] = draw_takes(lists["train"], args.takes, rng)
    for clips in lists.values():
        for clip_id in clips if args.noise is not None else ():
            of_clip = np.random.default_rng([args.seed, zlib.crc32(clip_id.encode())])
            files[noisy / f"{clip_id}.wav"] = add_noise(clean / f"{clip_id}.wav", args.noise, of_clip)
    for split, clips in lists.items():
        rows = (f"{clip_id},{digit}\n" for clip_id, digit in clips.items())
        files[folder / f"{split}.csv"] = "".join(rows).encode()
    write_files(files, args.overwrite)  # the lists last, when all images exist

    for split, clips in lists.items():
        print(f"{folder / f'{split}.csv'}: {len(clips)} clips")
    energy = pca.explained_variance_ratio_.sum()
    print(f"images keep {pca.n_components_} of {SIDE**2} components, {energy:.2f} of the energy")
    if (count := sum(map(len, recordings.values()))) != RECORDINGS:
        print(f"{count} recordings found, the whole set has {RECORDINGS}")


if __name__ == "__main__":
    run_script(main)
