"""The demo's clips: easy ones, and hard ones for comparisons."""

import cv2
import numpy as np
import pytest
import soundfile

from data.demo import make_clips
from tests.conftest import run_here


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips an emotion of either grade -> their folders."""
    folder = tmp_path_factory.mktemp("demo")
    for grade in ("easy", "hard"):
        run_here(make_clips, "--root", folder / grade, "--grade", grade, "--clips_per_class", 2)
    return folder / "easy", folder / "hard"


def first_picture(path):
    return cv2.VideoCapture(str(path)).read()[1].astype(float)


def test_hard_clips_are_as_long_with_more_noise(clips):
    """A voice begins with noise alone, of which a few samples tell little: the median of the clips counts."""
    louder = []
    for path in sorted((clips[0] / "AudioWAV").iterdir()):
        easy, hard = (soundfile.read(root / "AudioWAV" / path.name)[0] for root in clips)
        assert len(easy) == len(hard)
        louder.append(np.std(hard[:8]) / np.std(easy[:8]))
        easy, hard = (first_picture(root / "VideoFlash" / f"{path.stem}.flv")[:40, :40] for root in clips)  # backdrop
        assert (hard.std(axis=(0, 1)) > 1.1 * easy.std(axis=(0, 1))).all()
    assert np.median(louder) > 1.5


def test_a_neutral_face_is_the_same_but_for_grain_and_an_angry_one_is_not(clips):
    def distance(emotion):
        easy, hard = (first_picture(root / "VideoFlash" / f"1001_D00_{emotion}_XX.flv") for root in clips)
        return np.abs(cv2.blur(easy, (25, 25)) - cv2.blur(hard, (25, 25))).mean()

    assert distance("ANG") > 2 * distance("NEU")


def test_each_grade_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(make_clips, "process_clips", lambda function, jobs, start: made.append(jobs) or ({}, {}))
    monkeypatch.setattr(make_clips, "print_summary", lambda *counts: None)
    for flags in ((), ("--grade", "hard")):
        run_here(make_clips, *flags)
    roots = [{str(job[0]) for job in jobs.values()} for jobs in made]
    assert roots == [{"train_test_data/demo/CREMA-D"}, {"train_test_data/demo-hard/CREMA-D"}]
