"""Bad input of every kind: one line on stderr that names it, exit status 2, no traceback, no file left behind."""

import io
import pickle
import shutil
import signal
from contextlib import closing

import numpy as np
import pytest
import soundfile
import torch

import main_dgl
import valid
from data.CREMAD import make_split
from data.demo import make_clips
from engine.checkpoint import save
from models.basic_model import AVClassifier
from tests.conftest import SMALL, data_flags, run_here, write_video
from utils.errors import Interrupted

CREMAD_FRAMES, AVE_FRAMES = (f"data/{name}/video_preprocessing.py" for name in ("CREMAD", "AVE"))
AVE_AUDIO, VGGSOUND_AUDIO, KINETICS_AUDIO = (f"data/{name}/mp4_to_wav.py" for name in ("AVE", "VGGSound", "kinect400"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 271360\n"


class Malicious:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.fixture
def root(corpus, tmp_path):
    """A corpus of 18 and 6 clips, to be spoilt."""
    shutil.copytree(corpus, tmp_path / "corpus", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "corpus"


def tree(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if ".cache" not in path.parts}


def refused(capsys, root, script, *flags):
    """The one line with which a script refuses its input."""
    before = tree(root.parent)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_here(script, *flags)
    output = capsys.readouterr()
    assert end.value.code == 2
    assert len(output.err.splitlines()) == 1 and "Traceback" not in output.err, output.err
    assert "code ran" not in output.out + output.err
    assert tree(root.parent) == before
    return output.err


FLAGS = {
    "unknown flag": ["--alhpa", "4"],
    "alpha below 0": ["--alpha", "-1"],
    "alpha not finite": ["--alpha", "inf"],
    "alpha not a number": ["--alpha", "nan"],
    "batch size": ["--batch_size", "0"],
    "batch size of a half": ["--batch_size", "0.5"],
    "epochs": ["--epochs", "many"],
    "no epochs": ["--epochs", "0"],
    "learning rate": ["--learning_rate", "0"],
    "decay step": ["--lr_decay_step", "[seventy]"],
    "decay ratio": ["--lr_decay_ratio", "-0.1"],
    "seed": ["--random_seed", "-1"],
    "seed beyond 64 bits": ["--random_seed", str(2**64)],
    "huge batch": ["--batch_size", str(10**30)],
    "fusion": ["--fusion_method", "mean"],
    "dataset": ["--dataset", "CREMA-D"],
    "modality": ["--modality", "smell"],
    "method": ["--method", "dgl2"],
    "modulation of dgl": ["--modulation", "OGM_GE", "--method", "dgl"],
    "both encoders for one": ["--modality", "full", "--method", "audio"],
    "flag of another method": ["--ogm_alpha", "0.3"],
    "ablation of joint": ["--no_mgt", "--method", "joint"],
    "method of one encoder": ["--modality", "audio", "--method", "joint"],
    "ablation of one encoder": ["--modality", "visual", "--no_ugt"],
    "window upside down": ["--modulation_starts", "5", "--modulation_ends", "4", "--method", "ogm"],
    "ogm_alpha": ["--ogm_alpha", "-0.1", "--method", "ogm"],
    "all held out": ["--val_ratio", "1"],
    "a negative share held out": ["--val_ratio", "-0.1"],
    "share of damage": ["--max_skipped", "1.5"],
    "device": ["--device", "cuda:99"],
    "device's name": ["--device", "gpu"],
    "workers": ["--num_workers", "-1"],
    "small pictures": ["--image_size", "16"],
    "no such sound": ["--audio_path", "/nonexistent/wav"],
    "no such frames": ["--visual_path", "/nonexistent/frames"],
    "frames at another rate": ["--fps", "7"],
    "no such list": ["--split_path", "/nonexistent/lists"],
    "too many frames": ["--num_frame", "99"],
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_flags(capsys, root, flags):
    command = ["--train", *data_flags(root), *SMALL, "--ckpt_path", root / "run"]
    error = refused(capsys, root, main_dgl, *command, *flags)
    assert flags[0] in error or flags[1].startswith("/") and flags[1] in error


def test_a_file_where_the_run_should_be(capsys, root):
    (root / "run").write_text("mine")
    command = ["--train", *data_flags(root), *SMALL, "--ckpt_path", root / "run"]
    assert "run" in refused(capsys, root, main_dgl, *command) and (root / "run").read_text() == "mine"


LISTS = {
    "missing": None,
    "empty": b"",
    "blank lines": b"\n\n",
    "unknown emotion": b"1001_D00_ANG_XX,JOY\n",
    "one column": b"1001_D00_ANG_XX\n",
    "three columns": b"1001_D00_ANG_XX,ANG,1\n",
    "path escape": b"../../secret,ANG\n",
    "absolute path": b"/etc/passwd,ANG\n",
    "parent": b"..,ANG\n",
    "zero byte": b"1001\0,ANG\n",
    "not UTF-8": b"\xff\xfe\x00\x80",
    "latin-1": "1001_D00_ANG_XX,ÄRGER\n".encode("latin-1"),
    "pointer": POINTER,
    "no clip of it is there": b"1099_D00_ANG_XX,ANG\n",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_lists(capsys, root, split, content):
    path = root / f"{split}.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    error = refused(capsys, root, main_dgl, "--train", *data_flags(root), *SMALL, "--ckpt_path", root / "run")
    assert f"{split}.csv" in error or f"CREMAD {split}" in error


MEDIA = {
    "empty": b"",
    "text": b"404 Not Found\n",
    "pointer": POINTER,
    "zeros": bytes(5000),
    "wrong type": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("content", MEDIA.values(), ids=MEDIA)
@pytest.mark.parametrize("medium", ["wav", "jpg"])
def test_media(capsys, root, medium, content):
    """All sounds or all pictures spoilt: nothing is left to train on."""
    for path in root.rglob(f"*.{medium}"):
        path.write_bytes(content)
    error = refused(capsys, root, main_dgl, "--train", *data_flags(root), *SMALL, "--ckpt_path", root / "run")
    assert "no clip can be decoded" in error and f".{medium}" in error


def test_a_batch_of_one_small_clip(capsys, root):
    flags = ["--train", *data_flags(root), *SMALL, "--batch_size", 1, "--ckpt_path", root / "run"]
    error = refused(capsys, root, main_dgl, *flags)
    assert "--image_size 32" in error and "--batch_size" in error


def checkpoint_of(trained, name="best.pth", **changes):
    return torch.load(trained[0] / name, weights_only=True) | changes


CHECKPOINTS = {
    "missing": lambda trained, path: None,
    "a folder": lambda trained, path: path.mkdir(),
    "empty": lambda trained, path: path.write_bytes(b""),
    "text": lambda trained, path: path.write_text("accuracy 78.12\n"),
    "pointer": lambda trained, path: path.write_bytes(POINTER),
    "truncated": lambda trained, path: path.write_bytes((trained[0] / "best.pth").read_bytes()[:45_000_000]),
    "a plain pickle": lambda trained, path: path.write_bytes(pickle.dumps({"model": {}})),
    "malicious": lambda trained, path: torch.save({"model": Malicious()}, path),
    "malicious pickle": lambda trained, path: path.write_bytes(pickle.dumps(Malicious())),
    "weights without names": lambda trained, path: torch.save({"model": {0: torch.zeros(2)}, "settings": {}}, path),
    "dataset of a tensor": lambda trained, path: torch.save(
        checkpoint_of(trained, settings={"dataset": torch.zeros(2)}), path
    ),
    "a tensor": lambda trained, path: torch.save(torch.zeros(3), path),
    "no weights": lambda trained, path: torch.save({"model": {"fc": "none"}, "settings": {}}, path),
    "other weights": lambda trained, path: torch.save(checkpoint_of(trained, model={"w": torch.zeros(2)}), path),
    "settings of a number": lambda trained, path: torch.save(checkpoint_of(trained, settings=4), path),
    "other dataset": lambda trained, path: torch.save(checkpoint_of(trained, settings={"dataset": "MNIST"}), path),
    "size of a word": lambda trained, path: torch.save(checkpoint_of(trained, settings={"image_size": "large"}), path),
    "fusion of a list": lambda trained, path: torch.save(checkpoint_of(trained, settings={"fusion_method": []}), path),
    "unknown modality": lambda trained, path: torch.save(checkpoint_of(trained, settings={"modality": "smell"}), path),
    "classes of a number": lambda trained, path: torch.save(checkpoint_of(trained, classes=6), path),
    "classes of numbers": lambda trained, path: torch.save(checkpoint_of(trained, classes=[0, 1]), path),
    "other classes": lambda trained, path: torch.save(checkpoint_of(trained, classes=["JOY", "FEA"]), path),
    "epoch of a tensor": lambda trained, path: torch.save(checkpoint_of(trained, epoch=torch.zeros(2)), path),
    "weights not finite": lambda trained, path: torch.save(
        checkpoint_of(trained, model={k: v * float("nan") for k, v in checkpoint_of(trained)["model"].items()}), path
    ),
    "wrong shape": lambda trained, path: torch.save(
        checkpoint_of(trained, model={k: v[..., None] for k, v in checkpoint_of(trained)["model"].items()}), path
    ),
}


@pytest.mark.parametrize("write", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints(capsys, root, trained, write):
    path = root / "spoilt.pth"
    write(trained, path)
    assert str(path) in refused(capsys, root, valid, "--ckpt_path", path, "--num_workers", 0)


class FileOfASignal(io.BytesIO):
    """A file that a signal interrupts as it is written."""

    def write(self, content):
        if self.tell() > 1000:
            raise Interrupted(signal.SIGTERM)
        return super().write(content)


def test_a_signal_while_a_checkpoint_is_written_stays_a_signal(tmp_path, monkeypatch):
    """PyTorch's writer raises an error of its own then, which is no fault of the disk."""
    monkeypatch.setattr("engine.checkpoint.replacing", lambda path: closing(FileOfASignal()))
    with pytest.raises(Interrupted) as interruption:
        save(tmp_path / "last.pth", AVClassifier(6, modality="audio"), {})
    assert interruption.value.number == signal.SIGTERM


VALIDATION = {
    "one of two checkpoints missing": (["--ckpt_path", "best.pth", "none.pth"], "none.pth"),
    "matrices of two": (["--ckpt_path", "best.pth", "last.pth", "--confusion", "a.png"], "--confusion"),
    "predictions of two": (["--ckpt_path", "best.pth", "last.pth", "--predictions", "a.csv"], "--predictions"),
    "video of two": (["--ckpt_path", "best.pth", "last.pth", "--video", "a.flv"], "--video"),
    "video and JSON": (["--ckpt_path", "best.pth", "--video", "a.flv", "--json", "a.json"], "--json"),
    "video and probe": (["--ckpt_path", "best.pth", "--video", "a.flv", "--linear_probe"], "--linear_probe"),
    "JSON nowhere": (["--ckpt_path", "best.pth", "--json", "nowhere/a.json"], "nowhere/a.json"),
    "matrices nowhere": (["--ckpt_path", "best.pth", "--confusion", "nowhere/a.png"], "nowhere/a.png"),
    "predictions nowhere": (["--ckpt_path", "best.pth", "--predictions", "nowhere/a.csv"], "nowhere/a.csv"),
}


@pytest.mark.parametrize(("flags", "word"), VALIDATION.values(), ids=VALIDATION)
def test_flags_of_validation(capsys, root, trained, monkeypatch, flags, word):
    for name in ("best.pth", "last.pth"):
        shutil.copy(trained[0] / name, root)
    monkeypatch.chdir(root)
    assert word in refused(capsys, root, valid, *flags, *data_flags(root), "--num_workers", 0)


def test_a_checkpoint_names_no_file_to_write(capsys, root, trained):
    """A stranger's settings may say what the data are like, not where to write."""
    settings = checkpoint_of(trained)["settings"] | {"json": str(root / "mine"), "cache_path": str(root / "there")}
    (root / "mine").write_text("mine")
    torch.save(checkpoint_of(trained, settings=settings), root / "best.pth")
    run_here(valid, "--ckpt_path", root / "best.pth", *data_flags(root))
    assert (root / "mine").read_text() == "mine" and not (root / "there").exists()


RESUMED = {
    "no optimiser": {"optimizer": {}},
    "log of other epochs": {"log": [{"epoch": 1, "fused": 0.5}]},
    "log of words": {"log": [{"epoch": 0, "fused": "much"}]},
    "log of a number": {"log": 3},
    "other clips": {"clips": 0},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_checkpoints_to_resume(capsys, root, trained, changes):
    (root / "run").mkdir()
    (root / "run" / ".lock").touch()  # which every run leaves in its folder
    torch.save(checkpoint_of(trained, "last.pth", **changes), root / "run" / "last.pth")
    flags = ["--epochs", 2, "--lr_decay_step", "[1]", "--learning_rate", 0.01, "--ckpt_path", root / "run"]
    assert "last.pth" in refused(capsys, root, main_dgl, "--train", "--resume", *data_flags(root), *SMALL, *flags)


@pytest.mark.parametrize("content", [*MEDIA.values(), b"FLV\x01\x05\0\0\0\x09"], ids=[*MEDIA, "header alone"])
@pytest.mark.parametrize("script", [CREMAD_FRAMES, AVE_FRAMES, AVE_AUDIO])
def test_videos(root, capsys, script, content):
    """No clip can be decoded; the list of failures is all that is left."""
    shutil.rmtree(root / "Image-01-FPS")
    (root / "AVE").mkdir()
    for name in ("train", "val", "test"):
        (root / f"{name}Set.txt").write_text("Banjo&abc&good&0&10\n")
    for path in (*(root / "VideoFlash").iterdir(), root / "AVE" / "abc.mp4"):
        path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        run_here(script, "--root", root, "--workers", 2)
    error = capsys.readouterr().err
    report = root / ("failed_audio.csv" if "mp4" in script else "failed_frames.csv")
    assert end.value.code == 2 and len(error.splitlines()) == 1 and str(report) in error
    assert len(report.read_text().splitlines()) == 1 + (24 if "CREMAD" in script else 1)
    assert not [*root.glob("Image-*/*"), *root.glob("Audios/*"), *root.rglob(".partial*")]


CLIPS = {
    **{name: lambda path, content=content: path.write_bytes(content) for name, content in MEDIA.items()},
    "header alone": lambda path: path.write_bytes(b"FLV\x01\x05\0\0\0\x09"),
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "sound alone": lambda path: soundfile.write(path, np.zeros(16000), 16000, format="WAV"),
    "too short": lambda path: write_video(path, [90] * 19, tone=440),  # two frames at one a second
    "no picture whole": lambda path: path.write_bytes(whole_video(path)[:3000]),
}


def whole_video(path):
    write_video(path, [90] * 40, tone=440)
    return path.read_bytes()


@pytest.mark.parametrize("write", CLIPS.values(), ids=CLIPS)
def test_a_video_to_classify(capsys, root, trained, write):
    path = root / "clip.mp4"
    write(path)
    flags = ["--ckpt_path", trained[0] / "best.pth", "--num_frame", 3, "--video", path]
    assert str(path) in refused(capsys, root, valid, *flags)


def test_a_silent_video_for_a_model_of_sound(capsys, root):
    settings = {"dataset": "CREMAD", "modality": "audio", "image_size": 32}
    save(root / "audio.pth", AVClassifier(6, modality="audio"), settings)
    write_video(root / "silent.mp4", [90] * 10)
    flags = ["--ckpt_path", root / "audio.pth", "--video", root / "silent.mp4"]
    assert "silent.mp4: has no audio" in refused(capsys, root, valid, *flags)


SCRIPTS = {
    "no clips": (
        CREMAD_FRAMES,
        lambda root: shutil.rmtree(root / "VideoFlash"),
        [],
        "VideoFlash",
    ),
    "fps": (CREMAD_FRAMES, lambda root: None, ["--fps", 0], "--fps"),
    "no frames to split": (make_split, lambda root: shutil.rmtree(root / "Image-01-FPS"), [], "Image-01-FPS"),
    "a file for the lists": (make_split, lambda root: None, ["--split_path", __file__], "test_bad_input.py"),
    "a file for the clips": (make_clips, lambda root: None, ["--root", __file__], "test_bad_input.py"),
    "test ratio": (make_split, lambda root: None, ["--test_ratio", "1.5"], "--test_ratio"),
    "no lists of AVE": (AVE_AUDIO, lambda root: None, [], "trainSet.txt"),
    "no list of VGGSound": (
        VGGSOUND_AUDIO,
        lambda root: None,
        ["--split_path", "/nonexistent"],
        "vggsound.csv",
    ),
    "no Kinetics": (KINETICS_AUDIO, lambda root: None, ["--source", "/nonexistent"], "/nonexistent"),
    "workers": (KINETICS_AUDIO, lambda root: None, ["--workers", "0"], "--workers"),
}


@pytest.mark.parametrize(("script", "spoil", "flags", "word"), SCRIPTS.values(), ids=SCRIPTS)
def test_scripts_of_the_data(capsys, root, script, spoil, flags, word):
    spoil(root)
    assert word in refused(capsys, root, script, "--root", root, *flags)
