"""The datasets in miniature, from raw clips to a validated model; their layouts and lists, and what is wrong in them.

A clip is recognised by its class's grey value and by its own tone, 500 Hz, 1000 Hz, ...
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from dataset import DATASETS, build_dataset, clips
from dataset.audio_visual import AudioVisual
from dataset.base import Clip
from dataset.clips import ClipDataset
from dataset.lists import read_classes
from models.weights import load_checkpoint
from tests import launcher, test_reader
from tests.conftest import SMALL, run_here, run_shell, settings_of, train, write_video
from utils.batches import IMAGENET_MEAN, IMAGENET_STD
from utils.errors import InputError, warn_once


def settings(dataset, root, **changes):
    """Return the settings of a run on a dataset in another folder."""
    flags = [word for name, value in changes.items() for word in (f"--{name}", value)]
    return settings_of("--dataset", dataset, "--root", root, "--image_size", 32, *flags)


def check_item(dataset, clip, item, expected, shape):
    """Check that a clip has its own audio and frames; expected: (class, number of its tone, grey value)."""
    (spectrogram,), frames = item[0]["audio"], item[0]["visual"]
    assert spectrogram.shape == shape and frames.shape == (3, dataset.decoder.num_frame, 32, 32)
    tone = spectrogram.exp().sum(dim=1).argmax() / (shape[0] - 1) * dataset.decoder.audio.rate / 2 / 500
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    label, number, grey = expected
    assert dataset.classes[item[1]] == label and abs(tone - number) < 0.1, clip.id
    assert abs(255 * (frames * std + mean).mean() - grey) < 4, clip.id


def train_and_validate(forking, script, args, folder):
    """Train an epoch through the dataset's script; return what it printed, and the settings of its checkpoint."""
    flags = ["--root", args.root, "--cache_path", folder / ".cache", *SMALL, "--batch_size", 4, "--epochs", 1]
    flags += ["--split_path", args.split_path] if args.split_path else []
    done = run_shell(script, *flags, "--ckpt_path", folder / "run", project=forking, **{launcher.SMALL: "1"})
    saved = load_checkpoint(folder / "run" / "last.pth")
    assert saved["epoch"] == 0 and saved["settings"]["dataset"] == args.dataset
    assert saved["model"]["fusion_module.fc_out.weight"].shape == (DATASETS[args.dataset].n_classes, 1024)
    assert "\naccuracy " in done.stdout
    return done.stdout, saved["settings"]


KINETICS = [
    ("train" if part == "train" else "test", label, f"{label}/{Path(file).stem}", f"raw/{part}/{folder}/{file}")
    for part, folder, files in (
        ("train", "playing guitar", "a.mp4 silent.mp4 c.mkv"),
        ("train", "tap_dancing", "d.mp4 short.mp4 long.mp4"),
        ("train", "abseiling", "g.mp4"),
        ("train", "archery", "silent.mp4"),
        ("train", "zumba", "short.mp4"),
        ("val", "playing guitar", "h.mp4"),
        ("val", "tap_dancing", "i.mp4"),
        ("val", "abseiling", "j.mp4"),
        ("val", "archery", "k.mp4"),
        ("val", "zumba", "l.mp4"),
    )
    for label, file in ((folder.replace(" ", "_"), file) for file in files.split())
]
VGGSOUND = [
    ("train", "people eating, noisily", "-0abc_000030", "video/-0abc_30.mp4"),
    ("train", "dog barking", "b_c-d_000005", "video/b_c-d_000005.MKV"),
    ("train", "dog barking", "eeeee_000000", "video/eeeee.MP4"),
    ("train", "cat purring", "twice_000001", None),
    ("test", "people eating, noisily", "ggggg_000120", "video/ggggg_120.000.mkv"),
    ("test", "dog barking", "twice_000002", None),
]
AVE = [
    ("train", "Church bell", "-a", "AVE/-a.mp4"),
    ("train", "Banjo", "b", "AVE/b.MKV"),
    ("train", "Banjo", "c", "AVE/c.mp4"),
    ("val", "Frying (food)", "d", "AVE/d.mp4"),
    ("test", "Church bell", "e", "AVE/e.mov"),
    ("test", "Banjo", "gone", None),
]
NO_CLIPS = [f"raw/train/tap_dancing/{name}" for name in ("x.mp4", "x.WEBM", "._y.mp4")]
TWO = "same output as another video: train/tap_dancing/x.WEBM and train/tap_dancing/x.mp4; remove all but one"
GUITAR = [f"audio/{split}/playing_guitar/{clip}.wav" for split, clip in (("train", "a"), ("test", "h"))]
GUITAR += [f"visual/{split}_img/Image-01-FPS/playing_guitar/{clip}" for split, clip in (("train", "a"), ("val", "h"))]
MINIATURES = {
    "KineticSound": {
        "rows": KINETICS,
        "others": NO_CLIPS,  # files that are no clips of the dataset
        "printed": ["7 done, 0 already there, 3 failed", TWO],  # by both scripts
        "outputs": GUITAR,  # some of them, in the folders that the dataset's readme lists
        "classes": (33, "blowing_nose", "playing_xylophone"),  # how many, the first and the last
        "without": ("abseiling", "archery", "zumba"),
        "shape": (129, 626),
        "trained": (
            "ks_dgl.sh",
            "KineticSound train: 4 clips, 2 skipped",
            {"alpha": 3, "num_frame": 3, "learning_rate": 0.002},
        ),
    },
    "kinect400": {
        "rows": KINETICS,
        "others": NO_CLIPS,
        "printed": ["12 done, 0 already there, 4 failed", TWO],
        "outputs": GUITAR,
        "classes": (3, "abseiling", "tap_dancing"),
        "without": ("archery", "zumba"),
        "shape": (129, 1001),
        "trained": ("kinect400_dgl.sh", "kinect400 train: 5 clips, 2 skipped", {}),
    },
    "VGGSound": {
        "rows": VGGSOUND,
        "others": ["video/twice.mp4", "video/other_1.mp4"],
        "printed": [
            "4 done, 0 already there, 0 failed, 2 missing, 2 of other names",
            "such as other_1.mp4 (looked for twice_000001.mp4)",
        ],
        "outputs": [
            "audio/train-audios/train-set/-0abc_000030.wav",
            "audio/test-audios/test-set/ggggg_000120.wav",
            "video/train-set-img/Image-01-FPS/-0abc_000030.mp4/00020.jpg",
            "video/test-set-img/Image-01-FPS/ggggg_000120.mp4/00020.jpg",
        ],
        "classes": (3, "cat purring", "people eating, noisily"),
        "without": (),
        "shape": (129, 626),
        "trained": ("vggsound_dgl.sh", "VGGSound train: 3 clips, 1 skipped", {"alpha": 2}),
    },
    "AVE": {
        "rows": AVE,
        "others": ["AVE/GONE.mp4"],
        "printed": ["5 done, 0 already there, 0 failed, 1 missing, 1 of other names", "GONE.mp4"],
        "outputs": ["Audios/-a.wav", "Image-01-FPS-SE/d/00020.jpg"],
        "classes": (3, "Banjo", "Frying (food)"),
        "without": (),
        "shape": (257, 259),
        "trained": ("ave_dgl.sh", "AVE train: 3 clips", {}),
    },
}


@pytest.mark.parametrize("name", MINIATURES)
def test_from_raw_clips_to_a_validated_model(forking, tmp_path, capsys, name):
    case, expected = SimpleNamespace(**MINIATURES[name]), {"train": {}, "val": {}, "test": {}}
    greys = {label: 40 + 40 * k for k, label in enumerate(dict.fromkeys(label for _, label, *_ in case.rows))}
    for number, (split, label, clip_id, video) in enumerate(case.rows, start=1):
        seconds, silent = 2 if "short" in clip_id else 11 if "long" in clip_id else 3, "silent" in clip_id
        if video:
            write_video(tmp_path / video, [greys[label]] * 10 * seconds, tone=None if silent else 500 * number)
        if label not in case.without:
            usable = video and seconds > 2 and not silent
            expected[split][clip_id] = (label, number, greys[label]) if usable else None
        if name == "VGGSound":
            youtube_id, _, start = clip_id.rpartition("_")
            with open(tmp_path / "vggsound.csv", "a") as file:
                file.write(f'{youtube_id},{int(start)},"{label}",{split}\n')
        elif name == "AVE":
            with open(tmp_path / f"{split}Set.txt", "a") as file:
                file.write(f"{label}&{clip_id}&good&0&10\n")
    for path in case.others:
        (tmp_path / path).touch()
    lists = {"split_path": tmp_path} if name == "VGGSound" else {}
    flags = ["--source", tmp_path / "raw"] if case.rows is KINETICS else ["--split_path", tmp_path] * bool(lists)
    for script in ("mp4_to_wav.py", "video_preprocessing.py"):
        run_here(f"data/{name}/{script}", "--root", tmp_path, "--workers", 2, *flags)
        output, error = capsys.readouterr()
        assert all(words in output for words in case.printed)
        if name == "KineticSound":
            assert "no folder of blowing_nose, bowling" in error and "playing_guitar" not in error

    assert all((tmp_path / path).exists() for path in case.outputs)
    warn_once.cache_clear()
    args = settings(name, tmp_path, **lists)
    for split in ("train", "test"):
        dataset = build_dataset(args, split)
        assert (len(dataset.classes), dataset.classes[0], dataset.classes[-1]) == case.classes
        skipped = [clip_id for clip_id, clip in expected[split].items() if not clip]
        assert sorted(dataset.skipped) == sorted(skipped)
        assert {clip.id for clip in dataset.clips} == expected[split].keys() - set(skipped)
        for clip, item in zip(dataset.clips, dataset, strict=True):
            check_item(dataset, clip, item, expected[split][clip.id], case.shape)
        if name == "kinect400":
            error = capsys.readouterr().err
            assert f"warning: kinect400 {split}: 2 clip(s) left out" in error and "archery, zumba" in error
    script, words, used = case.trained
    output, settings_used = train_and_validate(forking, script, args, tmp_path)
    assert words in output and used.items() <= settings_used.items()


class OneClip(AudioVisual):
    classes, audio = ("one",), DATASETS["KineticSound"].audio

    def clips(self, args, split):
        yield Clip("one", "one.wav", "one", ("0.jpg",), 0)


def test_audio_is_cropped_anywhere_in_training_and_in_the_middle_in_evaluation(tmp_path, monkeypatch):
    """Read samples that are their own index: 12 s, cropped to 5 s; and 4 s, repeated to 10 s before."""
    args = settings("KineticSound", tmp_path, num_frame=1)
    monkeypatch.setattr(clips, "log_spectrogram", lambda samples, audio: torch.as_tensor(samples))
    monkeypatch.setattr(clips, "load_image", lambda path: torch.zeros(40, 40, 3, dtype=torch.uint8))

    def crop(samples, split, epoch=0):
        monkeypatch.setattr(clips, "load_waveform", lambda path, rate: samples)
        dataset = ClipDataset(OneClip(), args, split)
        dataset.epoch = epoch
        return dataset[0][0]["audio"][0].numpy()

    long, short = np.arange(12 * 16000), np.arange(4 * 16000)
    assert (crop(long, "test") == np.arange(56000, 56000 + 80000)).all()
    assert (crop(short, "test") == np.tile(short, 3)[40000:120000]).all()
    starts = [crop(long, "train", epoch)[0] for epoch in range(300)]
    assert min(starts) < 8000 and 104000 < max(starts) <= 112000


BAD_LISTS = {
    "VGGSound": {
        "columns": ("vggsound.csv", "abc,30,dog barking\n", "line 1"),
        "start": ("vggsound.csv", "abc,30,dog,train\nabc,half,dog,train\n", "line 2"),
        "split": ("vggsound.csv", "abc,30,dog,val\n", "line 1"),
        "path": ("vggsound.csv", "../../abc,30,dog,train\n", "line 1"),
        "empty": ("vggsound.csv", "", "empty"),
        "missing": ("elsewhere.csv", "", "no such list"),
    },
    "AVE": {
        "columns": ("trainSet.txt", "Banjo&abc&good&0\n", "line 1"),
        "header": ("testSet.txt", "Category&VideoID&Quality&StartTime&EndTime\n", "line 1"),
        "path": ("valSet.txt", "Banjo&..&good&0&10\n", "line 1"),
        "classes": ("trainSet.txt", "".join(f"{k}&a&good&0&10\n" for k in range(29)), "29 classes"),
    },
    "KineticSound": {
        "path": ("class.txt", "singing\n../..\n", "line 2"),
        "classes": ("class.txt", "".join(f"{k}\n" for k in range(35)), "35 classes"),
        "folder": ("class.txt", "singing\n", "KineticSound train: a folder 1, which is not one of the classes"),
    },
}


@pytest.mark.parametrize(("dataset", "case"), [(name, case) for name, cases in BAD_LISTS.items() for case in cases])
def test_bad_lists_are_named_with_their_line(tmp_path, dataset, case):
    name, content, words = BAD_LISTS[dataset][case]
    for other in ("trainSet.txt", "valSet.txt", "testSet.txt"):
        (tmp_path / other).write_text("1&a&good&0&10\n")
    (tmp_path / name).write_text(content)
    (tmp_path / "a.wav").touch()
    (tmp_path / "train" / "1").mkdir(parents=True)
    (tmp_path / "train" / "1" / "a.wav").touch()
    for frames in (tmp_path / "Image-01-FPS-SE" / "a", tmp_path / "train_img" / "Image-01-FPS" / "1" / "a"):
        frames.mkdir(parents=True)
        (frames / "00000.jpg").touch()
    paths = dict.fromkeys(("audio_path", "visual_path", "split_path"), tmp_path)
    args = settings(dataset, tmp_path, num_frame=1, **paths)
    with pytest.raises(InputError, match=words) as error:
        build_dataset(args, "train")
    assert str(error.value).startswith(str(tmp_path)) or case == "folder"


def test_clips_in_both_lists_are_reported(few, tmp_path, small, capsys):
    train(few, tmp_path / "apart", "--epochs", 1)
    assert "in both" not in capsys.readouterr().err
    for name in ("train", "test"):
        shutil.copy(few / "train.csv", tmp_path / f"{name}.csv")
    train(few, tmp_path / "run", "--epochs", 1, "--split_path", tmp_path)
    first = (few / "train.csv").read_text().partition(",")[0]
    words = f"warning: 6 clip(s) are in both the training and the test list, the first is {first};"
    assert words in capsys.readouterr().err


def test_evaluation_takes_frames_within_a_much_shorter_audio(moved):
    first, *rest = build_dataset(test_reader.settings(moved), "test").clips
    for k in range(3, 61):
        shutil.copy(first.files()[1], Path(first.folder, f"{30 * k:05d}.jpg"))
    dataset = build_dataset(test_reader.settings(moved), "test")
    assert len(dataset.clips[0].frames) <= soundfile.info(first.wav).duration + 1 and dataset.cut == [first.id]
    assert f"1 with audio much shorter than their frames, the first is {first.id}" in str(dataset)
    assert not build_dataset(test_reader.settings(moved), "train").cut and dataset.clips[1:] == rest


def test_class_names_may_have_spaces(tmp_path):
    (tmp_path / "class.txt").write_text("playing guitar\nsinging\n")
    assert read_classes(tmp_path / "class.txt") == ["playing_guitar", "singing"]
