"""Lists and folders that are not as they should be: clips in both splits, classes without a usable clip."""

import shutil
from pathlib import Path

import pytest
import soundfile

import main_dgl
from dataset import build_dataset
from dataset.leaks import warn_of_leaks
from dataset.lists import read_classes
from tests.conftest import SMALL, data_flags, run_here
from tests.test_datasets import settings as settings_of
from tests.test_reader import settings


@pytest.fixture
def moved(corpus, tmp_path):
    """The corpus of 18 and 6 clips, to be changed."""
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "moved"


def clips(root):
    return [build_dataset(settings(root), split).clips for split in ("train", "test")]


def test_clips_in_both_lists_are_reported(moved, tmp_path, small, capsys):
    warn_of_leaks(*clips(moved))
    assert capsys.readouterr().err == ""
    shutil.copy(moved / "train.csv", moved / "test.csv")
    flags = ["--train", *data_flags(moved), *SMALL, "--epochs", 1, "--ckpt_path", tmp_path / "run"]
    run_here(main_dgl, *flags)
    first = (moved / "test.csv").read_text().partition(",")[0]
    assert (
        f"warning: 18 clip(s) are in both the training and the test list, the first is {first};"
        in capsys.readouterr().err
    )


def test_evaluation_takes_frames_within_a_much_shorter_sound(moved):
    train, test = clips(moved)
    folder = Path(test[0].folder)
    for k in range(3, 61):
        shutil.copy(test[0].files()[1], folder / f"{30 * k:05d}.jpg")
    seconds = soundfile.info(test[0].wav).duration
    dataset = build_dataset(settings(moved), "test")
    assert len(dataset.clips[0].frames) <= seconds + 1 and dataset.cut == [test[0].id]
    assert f"1 with frames taken within a much shorter audio, {test[0].id} first" in str(dataset)
    assert not build_dataset(settings(moved), "train").cut and dataset.clips[1:] == test[1:]


def test_a_class_without_a_usable_training_clip_is_left_out(tmp_path, capsys):
    for split, folder, names in (("train", "train_img", "abc"), ("test", "val_img", "abc")):
        for name in names:
            frames = tmp_path / folder / "Image-01-FPS" / name / "x"
            frames.mkdir(parents=True)
            (frames / "00000.jpg").touch()
            if (split, name) != ("train", "b"):
                (tmp_path / split / name).mkdir(parents=True)
                soundfile.write(tmp_path / split / name / "x.wav", [0.0] * 16000, 16000)
    shutil.rmtree(tmp_path / "train_img" / "Image-01-FPS" / "c")
    args = settings_of("kinect400", tmp_path, num_frame=1, audio_path=tmp_path, visual_path=tmp_path)
    for split in ("train", "test"):
        dataset = build_dataset(args, split)
        assert dataset.classes == ("a",) and [clip.id for clip in dataset.clips] == ["a/x"]
        error = capsys.readouterr().err
        assert f"warning: kinect400 {split}: 2 clip(s) left out" in error and "b, c" in error


def test_class_names_may_have_spaces(tmp_path):
    (tmp_path / "class.txt").write_text("playing guitar\nsinging\n")
    assert read_classes(tmp_path / "class.txt") == ["playing_guitar", "singing"]
