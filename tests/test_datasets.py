"""Kinetics-Sounds, VGGSound, AVE and Kinetics-400 in miniature, from raw clips to a validated model.

A clip is told by its class's grey value and by a tone of its own, 500 Hz, 1000 Hz, ...
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset import DATASETS, build_dataset, clips
from dataset.audio_visual import AudioVisual
from dataset.base import Clip
from dataset.clips import ClipDataset
from models.weights import load_checkpoint
from tests.conftest import run_fork, run_shell, settings_of, write_video
from utils.batches import IMAGENET_MEAN, IMAGENET_STD
from utils.errors import InputError

SMALL = ["--image_size", 32, "--batch_size", 4, "--num_workers", 1, "--epochs", 1]


def settings(dataset, root, **changes):
    """The settings of a run on a dataset in another folder."""
    flags = [word for name, value in changes.items() for word in (f"--{name}", value)]
    return settings_of("--dataset", dataset, "--root", root, "--image_size", 32, *flags)


def write_clip(path, grey, number, seconds=3):
    write_video(path, [grey] * 10 * seconds, tone=500 * number if number else None)


def tone_number(spectrogram, rate):
    """Which clip a spectrogram (F, T) is of."""
    frequency = spectrogram.exp().sum(dim=1).argmax().item() / (len(spectrogram) - 1) * rate / 2
    assert abs(frequency / 500 - round(frequency / 500)) < 0.1
    return round(frequency / 500)


def grey_value(frames):
    """The grey value of frames (3, N, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (frames * std + mean).mean().item()


def check_items(dataset, expected, shape):
    """Each clip with its own sound and pictures; expected: {id: (class, number of its tone, grey value)}."""
    assert {clip.id for clip in dataset.clips} == set(expected)
    for clip, (inputs, label) in zip(dataset.clips, dataset, strict=True):
        name, number, grey = expected[clip.id]
        (spectrogram,), frames = inputs["audio"], inputs["visual"]
        assert spectrogram.shape == shape and frames.shape == (3, dataset.decoder.num_frame, 32, 32)
        assert dataset.classes[label] == name
        assert tone_number(spectrogram, dataset.decoder.audio.rate) == number
        assert abs(grey_value(frames) - grey) < 4


def train_and_validate(forking, script, args, folder):
    """An epoch through the dataset's script; returns what it printed."""
    flags = ["--root", args.root, "--cache_path", folder / ".cache"]
    flags += ["--split_path", args.split_path] if args.split_path else []
    done = run_shell(script, *flags, *SMALL, "--ckpt_path", folder / "run", project=forking)
    saved = load_checkpoint(folder / "run" / "last.pth")
    assert saved["epoch"] == 0 and saved["settings"]["dataset"] == args.dataset
    assert saved["model"]["fusion_module.fc_out.weight"].shape == (DATASETS[args.dataset].n_classes, 1024)
    assert "\naccuracy " in done.stdout
    return done.stdout, saved["settings"]


@pytest.fixture(scope="session")
def kinetics(tmp_path_factory):
    """Kinetics-400 in its raw form: three classes, two of them of Kinetics-Sounds."""
    raw = tmp_path_factory.mktemp("kinetics") / "raw"
    write_clip(raw / "train" / "playing guitar" / "a.mp4", 40, 1)
    write_clip(raw / "train" / "playing guitar" / "b_no_sound.mp4", 40, None)
    write_clip(raw / "train" / "playing guitar" / "c.mkv", 40, 2)
    write_clip(raw / "train" / "tap_dancing" / "d.mp4", 100, 3)
    write_clip(raw / "train" / "tap_dancing" / "e_no_frames.mp4", 100, 4, seconds=2)
    write_clip(raw / "train" / "tap_dancing" / "f.mp4", 100, 5, seconds=11)
    write_clip(raw / "train" / "abseiling" / "g.mp4", 160, 6)
    write_clip(raw / "val" / "playing guitar" / "h.mp4", 40, 7)
    write_clip(raw / "val" / "tap_dancing" / "i.mp4", 100, 8)
    write_clip(raw / "val" / "abseiling" / "j.mp4", 160, 9)
    return raw


def test_kinetics_sounds(kinetics, forking, tmp_path):
    flags = ["--source", kinetics, "--root", tmp_path, "--workers", 2]
    assert "7 done, 0 already there, 1 failed" in run_fork("data/KineticSound/mp4_to_wav.py", *flags).stdout
    assert "7 done, 0 already there, 1 failed" in run_fork("data/KineticSound/video_preprocessing.py", *flags).stdout
    args = settings("KineticSound", tmp_path)
    train, test = build_dataset(args, "train"), build_dataset(args, "test")
    expected = {
        "playing_guitar/a": ("playing_guitar", 1, 40),
        "playing_guitar/c": ("playing_guitar", 2, 40),
        "tap_dancing/d": ("tap_dancing", 3, 100),
        "tap_dancing/f": ("tap_dancing", 5, 100),
    }
    check_items(train, expected, (129, 626))
    assert train.skipped == ["playing_guitar/b_no_sound", "tap_dancing/e_no_frames"]
    expected = {"playing_guitar/h": ("playing_guitar", 7, 40), "tap_dancing/i": ("tap_dancing", 8, 100)}
    check_items(test, expected, (129, 626))
    assert len(test.classes) == 33 and test.classes[0] == "blowing_nose" and test.classes[-1] == "playing_xylophone"

    output, used = train_and_validate(forking, "ks_dgl.sh", args, tmp_path)
    assert "KineticSound train: 4 clips, 2 skipped" in output
    assert used["alpha"] == 3 and used["num_frame"] == 3 and used["learning_rate"] == 0.002

    (tmp_path / "audio" / "test" / "yodelling").mkdir()
    (tmp_path / "audio" / "test" / "yodelling" / "k.wav").touch()
    with pytest.raises(InputError, match="yodelling"):
        build_dataset(args, "test")


def test_kinetics_400(kinetics, forking, tmp_path):
    flags = ["--source", kinetics, "--root", tmp_path, "--workers", 2]
    run_fork("data/kinect400/mp4_to_wav.py", *flags)
    run_fork("data/kinect400/video_preprocessing.py", *flags)
    args = settings("kinect400", tmp_path)
    expected = {
        "playing_guitar/h": ("playing_guitar", 7, 40),
        "tap_dancing/i": ("tap_dancing", 8, 100),
        "abseiling/j": ("abseiling", 9, 160),
    }
    test = build_dataset(args, "test")
    check_items(test, expected, (129, 1001))
    assert test.classes == ("abseiling", "playing_guitar", "tap_dancing")
    output, _ = train_and_validate(forking, "kinect400_dgl.sh", args, tmp_path)
    assert "kinect400 train: 5 clips, 2 skipped" in output


def test_vggsound(forking, tmp_path):
    rows = [("-0abc", 30, "people eating, noisily", "train"), ("b_c-d", 5, "dog barking", "train")]
    rows += [("eeeee", 0, "dog barking", "train"), ("gone1", 10, "cat purring", "train")]
    rows += [("ggggg", 120, "people eating, noisily", "test"), ("gone2", 7, "dog barking", "test")]
    greys = {"people eating, noisily": 40, "dog barking": 100}
    expected = {"train": {}, "test": {}}
    for number, (video, start, label, split) in enumerate(rows, start=1):
        if not video.startswith("gone"):
            clip_id = f"{video}_{start:06d}"
            write_clip(tmp_path / "video" / f"{clip_id}.mp4", greys[label], number)
            expected[split][clip_id] = (label, number, greys[label])
    lines = [f'{video},{start},"{label}",{split}\n' for video, start, label, split in rows]
    (tmp_path / "vggsound.csv").write_text("".join(lines))

    flags = ["--root", tmp_path, "--split_path", tmp_path, "--workers", 2]
    for script in ("mp4_to_wav.py", "video_preprocessing.py"):
        done = run_fork(f"data/VGGSound/{script}", *flags)
        assert "4 done, 0 already there, 0 failed, 2 missing" in done.stdout
    assert (tmp_path / "audio" / "train-audios" / "train-set" / "-0abc_000030.wav").exists()
    frames = tmp_path / "video" / "test-set-img" / "Image-01-FPS" / "ggggg_000120.mp4"
    assert sorted(path.name for path in frames.iterdir()) == ["00000.jpg", "00010.jpg", "00020.jpg"]
    args = settings("VGGSound", tmp_path, split_path=tmp_path)
    for split in ("train", "test"):
        dataset = build_dataset(args, split)
        check_items(dataset, expected[split], (129, 626))
        assert len(dataset.skipped) == 1
        assert dataset.classes == ("cat purring", "dog barking", "people eating, noisily")
    output, used = train_and_validate(forking, "vggsound_dgl.sh", args, tmp_path)
    assert "VGGSound train: 3 clips, 1 skipped" in output and used["alpha"] == 2


def test_ave(forking, tmp_path):
    rows = {"train": [("Church bell", "-a"), ("Banjo", "b"), ("Banjo", "c")], "val": [("Frying (food)", "d")]}
    rows["test"] = [("Church bell", "e"), ("Banjo", "gone")]
    greys = {"Church bell": 40, "Banjo": 100, "Frying (food)": 160}
    expected, number = {name: {} for name in rows}, 0
    for name, pairs in rows.items():
        lines = [f"{category}&{clip_id}&good&0&10\n" for category, clip_id in pairs]
        (tmp_path / f"{name}Set.txt").write_text("".join(lines))
        for category, clip_id in pairs:
            if clip_id != "gone":
                number += 1
                write_clip(tmp_path / "AVE" / f"{clip_id}.mp4", greys[category], number)
                expected[name][clip_id] = (category, number, greys[category])
    for script in ("mp4_to_wav.py", "video_preprocessing.py"):
        done = run_fork(f"data/AVE/{script}", "--root", tmp_path, "--workers", 2)
        assert "5 done, 0 already there, 0 failed, 1 missing" in done.stdout
    assert (tmp_path / "Image-01-FPS-SE" / "d" / "00020.jpg").exists()
    args = settings("AVE", tmp_path)
    for split in ("train", "test"):
        dataset = build_dataset(args, split)
        check_items(dataset, expected[split], (257, 259))
        assert dataset.classes == ("Banjo", "Church bell", "Frying (food)")
    train_and_validate(forking, "ave_dgl.sh", args, tmp_path)


SPLITS = (("train", "a"), ("test", "b"))
LISTS = {
    "CREMAD": {"train.csv": "a,ANG\n", "test.csv": "b,SAD\n"},
    "AVMNIST": {"train.csv": "a,0\n", "test.csv": "b,1\n"},
    "VGGSound": {"vggsound.csv": "a,30,dog,train\nb,5,dog,test\n"},
    "AVE": {"trainSet.txt": "Bell&a&good&0&1\n", "testSet.txt": "Bell&b&good&0&1\n", "valSet.txt": "Bell&c&good&0&1\n"},
}
TAP = "tap_dancing"
KINETICS = [
    ("train", "raw/train/tap dancing/a.mp4", f"audio/train/{TAP}/a", f"visual/train_img/Image-01-FPS/{TAP}/a"),
    ("test", "raw/val/tap dancing/b.mkv", f"audio/test/{TAP}/b", f"visual/val_img/Image-01-FPS/{TAP}/b"),
]
VGG_IMAGES = "video/{0}-set-img/Image-01-FPS"
LAYOUTS = {  # (split, raw video, wav file without its suffix, folder of frames), as the datasets' readmes have them
    "CREMAD": [(split, f"VideoFlash/{x}.flv", f"AudioWAV/{x}", f"Image-01-FPS/{x}") for split, x in SPLITS],
    "AVMNIST": [(split, None, f"recordings/{x}", f"Image-01-FPS/{x}") for split, x in SPLITS],
    "VGGSound": [
        ("train", "video/a_000030.mp4", "audio/train-audios/train-set/a_000030", f"{VGG_IMAGES}/a_000030.mp4"),
        ("test", "video/b_000005.mp4", "audio/test-audios/test-set/b_000005", f"{VGG_IMAGES}/b_000005.mp4"),
    ],
    "AVE": [(split, f"AVE/{x}.mp4", f"Audios/{x}", f"Image-01-FPS-SE/{x}") for split, x in SPLITS],
    "KineticSound": KINETICS,
    "kinect400": KINETICS,
    "Folder": [
        (split, path, f".extracted/audio/{path}", f".extracted/Image-01-FPS/{path}")
        for split, path in (("train", "train/a b/c.d.mov"), ("train", "train/e/c.mp4"), ("test", "test/e/é.mp4"))
    ],
}


@pytest.mark.parametrize("name", [name for name, source in DATASETS.items() if issubclass(source, AudioVisual)])
def test_what_is_extracted_lies_where_it_is_documented_and_read(tmp_path, name):
    source, rows = DATASETS[name](), LAYOUTS[name]
    paths = [tmp_path / raw for _, raw, _, _ in rows if raw]
    wavs = {tmp_path / f"{wav}.wav": split for split, _, wav, _ in rows}
    folders = [tmp_path / frames.format(split) for split, _, _, frames in rows]
    for path in (*paths, *wavs, *(folder / "00000.jpg" for folder in folders)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path, text in LISTS.get(name, {}).items():
        (tmp_path / path).write_text(text)
    lists = {"split_path": tmp_path} if name in LISTS else {}
    args = settings(name, tmp_path, num_frame=1, **lists)
    for split in ("train", "test"):
        read = list(source.clips(args, split))
        assert [Path(clip.wav) for clip in read] == [wav for wav, of in wavs.items() if of == split]
        expected = [folder for folder, of in zip(folders, wavs.values(), strict=True) if of == split]
        assert [(Path(clip.folder), clip.frames) for clip in read] == [(path, ("00000.jpg",)) for path in expected]
    if paths:
        args.source = tmp_path / "raw"
        videos, _ = source.videos(args)
        assert [path for *_, path in videos] == paths
        for (_, split, clip_id, _), wav, folder in zip(videos, wavs, folders, strict=True):
            assert Path(args.audio_path, source.wav(split, clip_id)) == wav
            assert Path(args.visual_path, source.frames(split, clip_id, fps=1)) == folder


class OneClip(AudioVisual):
    classes, audio = ("one",), DATASETS["KineticSound"].audio

    def clips(self, args, split):
        yield Clip("one", "one.wav", "one", ("0.jpg",), 0)


def test_sound_is_cropped_anywhere_in_training_and_in_the_middle_in_evaluation(tmp_path, monkeypatch):
    """Samples that are their own index: 12 s, cropped to 5 s; and 4 s, repeated to 10 s before."""
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
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}.*{words}"):
        build_dataset(args, "train")
