"""Clips that cannot be decoded: found before training, left out, listed; remembered while their files stay the same."""

import csv
import io
import random
import shutil
import time
from functools import partial

import numpy as np
import pytest
import soundfile

import main_dgl
import valid
from dataset import cache, clips
from dataset.loader import build_loader
from engine.device import choose_device
from tests.conftest import SMALL, data_flags, run_here
from tests.test_reader import settings

DAMAGES = {
    "truncated": lambda content: content[: len(content) * 2 // 3],
    "zeroed": lambda content: bytes(len(content)),
    "text": lambda content: b"404 Not Found\n",
    "empty": lambda content: b"",
}


@pytest.fixture
def moved(corpus, tmp_path):
    """The corpus of 18 and 6 clips, to be damaged."""
    shutil.copytree(corpus, tmp_path / "moved", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "moved"


def hurt(path, kind):
    path.write_bytes(DAMAGES[kind](path.read_bytes()))


def listed(folder):
    with open(folder / "skipped.csv", newline="") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def oversized_jpeg(content):
    """A JPEG whose header says 65,000 x 65,000, which a decoder refuses as a bomb."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + b"\xfd\xe8\xfd\xe8" + content[at + 4 :]


def nan_wav(content):
    file = io.BytesIO()
    soundfile.write(file, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT", format="WAV")
    return file.getvalue()


def streamed_wav(content):
    """A wav from a pipe, whose writer could not know its size."""
    return content[:4] + b"\xff\xff\xff\x7f" + content[8:]


@pytest.mark.parametrize(
    ("medium", "write", "found"), [("jpg", oversized_jpeg, 1), ("wav", nan_wav, 1), ("wav", streamed_wav, 0)]
)
def test_odd_files(moved, medium, write, found):
    path = sorted(moved.rglob(f"*.{medium}"))[0]
    path.write_bytes(write(path.read_bytes()))
    splits = [build_loader(settings(moved), split, choose_device("cpu")).dataset for split in ("train", "test")]
    assert sum(len(dataset.damaged) for dataset in splits) == found


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("medium", ["sound", "picture"])
def test_each_kind_of_damage_is_found(moved, kind, medium):
    loader = build_loader(settings(moved), "train", choose_device("cpu"))
    assert len(loader.dataset) == 18 and not loader.dataset.damaged
    clip = loader.dataset.clips[7]
    name = f"AudioWAV/{clip.id}.wav" if medium == "sound" else f"Image-01-FPS/{clip.id}/{clip.frames[-1]}"
    hurt(moved / name, kind)
    loader = build_loader(settings(moved, batch_size=17), "train", choose_device("cpu"))
    assert list(loader.dataset.damaged) == [clip.id] and name in loader.dataset.damaged[clip.id]
    assert len(loader.dataset) == 17 == sum(map(len, loader.sampler)) and clip.id in str(loader.dataset)


def test_a_decoder_that_hangs_costs_its_clip(moved, monkeypatch):
    path = sorted(moved.rglob("*.jpg"))[0]
    load_image = clips.load_image
    monkeypatch.setattr(clips, "load_image", lambda file: load_image(file) if file != str(path) else time.sleep(99))
    monkeypatch.setattr(cache, "each_clip", partial(cache.each_clip, limit=2))
    splits = [build_loader(settings(moved), split, choose_device("cpu")).dataset for split in ("train", "test")]
    damaged = {clip_id: reason for dataset in splits for clip_id, reason in dataset.damaged.items()}
    assert list(damaged) == [path.parent.name] and "2 s" in damaged[path.parent.name]


def test_training_goes_on_without_damaged_clips_and_lists_each(moved, tmp_path, small, capsys):
    """A tenth of the clips, drawn at random; one more has no sound at all."""
    rng = random.Random(0)
    ids = sorted(path.stem for path in (moved / "AudioWAV").glob("*.wav"))
    *chosen, silent = rng.sample(ids, 4)
    for clip_id, kind in zip(chosen, ("truncated", "zeroed", "text"), strict=True):
        files = [moved / "AudioWAV" / f"{clip_id}.wav", *sorted((moved / "Image-01-FPS" / clip_id).iterdir())]
        hurt(rng.choice(files), kind)
    (moved / "AudioWAV" / f"{silent}.wav").unlink()
    command = ["--train", *data_flags(moved), *SMALL, "--epochs", 1, "--ckpt_path", tmp_path / "run"]
    with pytest.raises(SystemExit) as end:
        run_here(main_dgl, *command)
    error = capsys.readouterr().err
    assert end.value.code == 2 and len(error.splitlines()) == 1
    assert "3 of 23 clips" in error and "--max_skipped 0.05" in error and not (tmp_path / "run").exists()

    run_here(main_dgl, *command, "--max_skipped", 0.15)
    rows = listed(tmp_path / "run")
    assert set(rows) == {*chosen, silent}
    assert all(clip_id in row["reason"] for clip_id, row in rows.items() if clip_id != silent)
    assert rows[silent]["reason"].startswith("no audio")
    tests = {line.split(",")[0] for line in (moved / "test.csv").read_text().splitlines()}
    assert all((row["split"] == "test") == (clip_id in tests) for clip_id, row in rows.items())
    capsys.readouterr()
    run_here(valid, "--ckpt_path", tmp_path / "run" / "best.pth")
    assert f"test: {6 - len(tests & rows.keys())} clips" in capsys.readouterr().out
