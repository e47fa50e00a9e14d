"""--dataset Folder: the user's own videos, from a folder for each class to a classified video."""

import shutil

import pytest

import main_dgl
import valid
from dataset import build_dataset
from models.weights import load_checkpoint
from tests import launcher
from tests.conftest import SMALL, run_here, run_shell, settings_of, write_video

EXTRACT = "data/Folder/extract.py"
CLASSES = {"cat": 40, "dog barking": 100, "Über.öl": 160}


def write_class(folder, name, clips, seconds=2):
    """Write short videos of a class, each with a tone of its own, with names that are hard to handle."""
    for k in range(clips):
        path = folder / name / f"clip {k} é{('.mp4', '.MOV', '.v2.mkv')[k % 3]}"
        write_video(path, [CLASSES.get(name, 200)] * int(10 * seconds), tone=500 + 50 * k)


@pytest.fixture(scope="session")
def mine(tmp_path_factory):
    """Return three classes of four training clips, one without audio, and a class that loses all of its clips."""
    root = tmp_path_factory.mktemp("mine") / "my videos"
    for name in CLASSES:
        write_class(root / "train", name, 4)
        write_class(root / "test", name, 2, seconds=0.5)
    write_video(root / "train" / "cat" / "silent.mp4", [40] * 20)
    truncated = root / "train" / "lost" / "truncated.mp4"
    write_video(truncated, [40] * 20, tone=440)
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size * 2 // 3])
    (root / "train" / "cat" / "notes.txt").write_text("no video")
    (root / "train" / ".hidden").mkdir()
    run_here(EXTRACT, "--root", root, "--workers", 2)
    return root


@pytest.fixture(scope="session")
def flat(mine, tmp_path_factory):
    """Return the same training clips in class folders directly below the root."""
    root = shutil.copytree(mine / "train", tmp_path_factory.mktemp("flat") / "videos")
    run_here(EXTRACT, "--root", root, "--workers", 2)
    return root


def splits(root, *flags):
    """Return the datasets of the training and the test clips."""
    settings = settings_of("--dataset", "Folder", "--root", root, "--image_size", 32, *flags)
    return [build_dataset(settings, split) for split in ("train", "test")]


def test_videos_of_both_splits_are_read(mine, capsys):
    train, test = splits(mine)
    warning = f"warning: {mine}: class(es) left out, no training clip with audio and 1 frame(s): lost\n"
    assert capsys.readouterr().err == warning
    assert train.classes == test.classes == tuple(sorted(CLASSES)) and train.skipped == ["train/cat/silent.mp4"]
    for dataset, clips in ((train, 4), (test, 2)):
        assert [clip.label for clip in dataset.clips] == [label for label in range(3) for _ in range(clips)]
        assert all(clip.id.split("/")[1] == dataset.classes[clip.label] for clip in dataset.clips)
    for path in ("audio/train/Über.öl/clip 2 é.v2.mkv.wav", "Image-01-FPS/train/Über.öl/clip 2 é.v2.mkv"):
        assert (mine / ".extracted" / path).exists()
    for seconds in (3, 1.5):
        inputs, _ = splits(mine, "--audio_seconds", seconds)[1][0]
        assert inputs["audio"].shape == (1, 257, 1 + int(seconds * 22050) // 256)
        assert inputs["visual"].shape == (3, 1, 32, 32)
    for name, failed in (
        ("audio", ["train/cat/silent.mp4", "train/lost/truncated.mp4"]),
        ("frames", ["train/lost/truncated.mp4"]),
    ):
        rows = (mine / f"failed_{name}.csv").read_text().splitlines()[1:]
        assert [row.partition(",")[0] for row in rows] == failed


def test_a_share_of_each_class_is_held_out_by_seed(flat, tmp_path, capsys):
    held_out = []
    for *flags, count in ([1], ["--random_seed", 1, 1], ["--test_share", 0.5, 2]):
        train, test = splits(flat, *flags)
        ids = {clip.id for clip in test.clips}
        assert not ids & {clip.id for clip in train.clips} and len(train) + len(test) == 12
        assert sorted(clip.label for clip in test.clips) == sorted([0, 1, 2] * count)
        held_out.append(ids)
    assert held_out[0] != held_out[1]

    root = shutil.copytree(flat, tmp_path / "videos")
    for path in sorted(path for path in (root / "cat").iterdir() if path.stem != "silent")[1:]:
        path.unlink()
    test = splits(root)[1]
    assert [clip.label for clip in test.clips] == [label for label, name in enumerate(test.classes) if name != "cat"]
    assert f"warning: {root}: class(es) without a test clip: cat\n" in capsys.readouterr().err


def test_the_script_trains_and_valid_names_the_classes(mine, forking, tmp_path, small_encoders, capsys):
    cache = ["--cache_path", tmp_path / "cache"]
    flags = [*SMALL, *cache, "--epochs", 1, "--audio_seconds", 1, "--ckpt_path", tmp_path / "run"]
    done = run_shell("folder_dgl.sh", *flags, project=forking, root=str(mine), **{launcher.SMALL: "1"})
    assert "accuracy" in done.stdout and "already there" in done.stdout
    saved = load_checkpoint(tmp_path / "run" / "best.pth")
    assert saved["classes"] == sorted(CLASSES) and saved["settings"]["audio_seconds"] == 1
    shutil.copytree(mine / "test", tmp_path / "new" / "test")
    run_here(valid, tmp_path / "run", "--video", next((tmp_path / "new" / "test" / "cat").iterdir()))
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in CLASSES)
    for name in ("train", ".extracted"):
        shutil.copytree(mine / name, tmp_path / "new" / name)
    run_here(valid, tmp_path / "run", "--root", tmp_path / "new", *cache)
    assert "\ntest: 6 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (None, "No such file or directory"),
        ("train/a", "has train/ only"),
        ("a", "no video in a folder"),
        ("one class", "with a training clip that has audio"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, rejected, folder, words):
    root = tmp_path / "videos"
    if folder == "one class":
        write_class(root, "a", 2)
        run_here(EXTRACT, "--root", root, "--workers", 2)
    else:
        (root / folder).mkdir(parents=True) if folder else None
        assert words in rejected(EXTRACT, "--root", root)
    error = rejected(main_dgl, "--train", "--dataset", "Folder", "--root", root, "--ckpt_path", tmp_path / "run")
    assert words in error and str(root) in error
