"""Bad input of every kind: one line on stderr that names it, exit status 2, no traceback, no file left behind."""

import os
import pickle
import re
import shutil
import sys
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import main_dgl
import valid
from data.CREMAD import make_split
from data.demo import make_clips
from tests.conftest import SMALL, TWO_EPOCHS, data_flags, run_here, write_video

CREMAD_FRAMES, AVE_FRAMES, KINETICS = (f"data/{x}/video_preprocessing.py" for x in ("CREMAD", "AVE", "kinect400"))
AVE_AUDIO, VGGSOUND_AUDIO, KINETICS_AUDIO = (f"data/{name}/mp4_to_wav.py" for name in ("AVE", "VGGSound", "kinect400"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 271360\n"
MEDIA = [b"", b"404 Not Found\n", POINTER, bytes(5000), b"\x89PNG\r\n\x1a\n"]
VIDEOS = [*MEDIA, b"FLV\x01\x05\0\0\0\x09"]
TRAINING = ["--train", *data_flags(Path()), *SMALL, "--ckpt_path", "run"]
VALIDATION = [*data_flags(Path()), "--num_workers", 0]


class Malicious:
    """An object that ends the process with status 3 if a reader of pickles runs its code."""

    def __reduce__(self):
        return sys.exit, (3,)


def changed(**parts):
    """Return a function that writes a run's checkpoint with other parts; `model` may be a function of each weight."""

    def write(path):
        saved = torch.load(path.name, weights_only=True)
        if callable(change := parts.get("model")):
            parts["model"] = {name: change(value) for name, value in saved["model"].items()}
        torch.save(saved | parts, path)

    return write


@pytest.fixture
def root(moved, whole, small, monkeypatch):
    """Work in a corpus of 18 and 6 clips, to be damaged, that has the checkpoints of a run next to its lists."""
    for name in ("best.pth", "last.pth"):
        (moved / name).symlink_to(whole / name)
    monkeypatch.chdir(moved)
    return moved


def write(path, content):
    """Write bytes, what a function of the path writes, nothing for None, and anything else by torch.save."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif callable(content):
        content(path)
    elif content is not None:
        torch.save(content, path)


def tree(folder):
    """Return {path: size of the file} of what is in a folder."""
    paths = [path for path in folder.rglob("*") if ".cache" not in path.parts]
    return {path: path.is_file() and path.stat().st_size for path in paths}


FLAGS = """
--lr 3 | --epoch 3 | --xyz 3 | --alhpa 4 | --alpha -1 | --alpha inf | --alpha nan | --batch_size 0 | --batch_size 0.5
--batch_size 1000000000000000000000000000000 | --epochs many | --epochs 0 | --learning_rate 0 | --max_skipped 1.5
--lr_decay_step [seventy] | --lr_decay_ratio -0.1 | --random_seed -1 | --random_seed 18446744073709551616
--image_size 16 | --fps 7 | --num_frame 99 | --val_ratio 1 | --val_ratio -0.1 | --num_workers -1 | --device cuda:99
--device gpu | --fusion_method mean | --dataset CREMA-D | --modality smell | --modality full --method audio
--modality audio --method joint | --modality visual --no_ugt | --no_mgt --method joint | --method dgl2
--modulation OGM_GE --method dgl | --modulation_starts 5 --modulation_ends 4 --method ogm | --ogm_alpha 0.3
--ogm_alpha -0.1 --method ogm
"""
MEANT = {"--lr": "--learning_rate", "--epoch": "--epochs", "--alhpa": "--alpha"}
CASES = []  # script, its flags, {files: what is written there, a list in turns}, a pattern of the error
for flags in FLAGS.strip().replace("\n", " | ").split(" | "):
    flag = flags.split()[0]
    meant = f".*did you mean {MEANT[flag]}" if flag in MEANT else "(?!.*did you mean)"
    CASES += [(main_dgl, flags, {}, flag + meant)]
CASES += [(main_dgl, f"--{name}_path /no/{name}", {}, f"/no/{name}") for name in ("audio", "visual", "split")]
CASES += [(main_dgl, "", {"run": b"mine"}, "run")]
CASES += [(main_dgl, "--batch_size 1", {}, "(?=.*--image_size 32).*--batch_size")]  # one value for BatchNorm
COMMAND = r"torchrun --nproc_per_node=2 main_dgl\.py --gpu_ids 0,1"
CASES += [(main_dgl, "--gpu_ids 0,1", {}, COMMAND), (valid, "best.pth --gpu_ids 0,1", {}, "(?!.*torchrun).*name one")]
for flag in ("--test_share", "--audio_seconds"):  # of --dataset Folder
    message = f"^error: {flag}: no effect with --dataset CREMAD; leave it out\n$"
    CASES += [(main_dgl, f"{flag} 0.5", {}, message), (valid, f"best.pth {flag} 0.5", {}, message)]
for flags, message in (
    ("--dataset MOSI --image_size 64", "no effect with --dataset MOSI"),
    ("--dataset MOSI --backbone resnet18", "does not fit MOSI; use mlp"),
    ("--dataset MOSI --fusion_method gated", "takes 2 modalities, not 3"),
    ("--dataset MOSI --method umt", "needs --umt_audio"),
    ("--method text", "--method text: CREMAD has the modalities audio, visual"),
    ("--backbone mlp", "does not fit CREMAD; use resnet18"),
    ("--freeze text", "--freeze text: CREMAD has the modalities audio, visual"),
):
    CASES += [("main_dgl.py", f"--train {flags}", {}, message)]

CLIP = b"1001_D00_ANG_XX"
LISTS = [None, b"", b"\n\n", CLIP, CLIP + b",JOY\n", CLIP + b",ANG,1\n", CLIP + ",ÄRGER\n".encode("latin-1"), POINTER]
LISTS += [b"../../secret,ANG\n", b"/etc/passwd,ANG\n", b"..,ANG\n", b"1001\0,ANG\n", b"\xff\xfe\x00\x80"]
LISTS += [b"1099_D00_ANG_XX,ANG\n"]  # of which no clip is there
for name, content in [*product(["train"], LISTS), *product(["test"], [None, b"", CLIP, POINTER, LISTS[-1]])]:
    CASES += [(main_dgl, "", {f"{name}.csv": content}, f"{name}.csv|CREMAD {name}")]
CASES += [(main_dgl, "", {f"*.{kind}": MEDIA}, rf"no clip can be decoded.*\.{kind}") for kind in ("wav", "jpg")]


def truncate(path):
    torch.save({"model": {"w": torch.zeros(9999)}, "settings": {}}, path)
    os.truncate(path, 30000)


CHECKPOINTS = [None, *MEDIA, pickle.dumps({"model": {}}), pickle.dumps(Malicious()), {"model": Malicious()}, Path.mkdir]
CHECKPOINTS += [truncate, torch.zeros(3), {"model": {0: torch.zeros(2)}, "settings": {}}]
CHECKPOINTS += [{"model": {"fc": "none"}, "settings": {}}]
PARTS = [{"settings": 4}, {"classes": 6}, {"classes": [0, 1]}, {"classes": ["JOY", "FEA"]}, {"epoch": torch.zeros(2)}]
PARTS += [{"settings": {"dataset": name}} for name in (torch.zeros(2), "MNIST")]
PARTS += [{"settings": value} for value in ({"image_size": "large"}, {"fusion_method": []}, {"modality": "smell"})]
PARTS += [{"model": {"w": torch.zeros(2)}}, {"model": lambda w: w * float("nan")}, {"model": lambda w: w[..., None]}]
CHECKPOINTS += [changed(**parts) for parts in PARTS]
CASES += [(valid, "--ckpt_path new/best.pth", {"new/best.pth": content}, "new/best.pth") for content in CHECKPOINTS]
RESUMED = [
    {"optimizer": {}},
    {"log": 3},
    {"log": [{"epoch": 1, "fused": 0.5}]},
    {"log": [{"epoch": 0, "fused": "much"}]},
]
SAME = " ".join(map(str, ["--resume", *TWO_EPOCHS]))
for parts in (*RESUMED, {"clips": 0}):  # every run leaves a lock in its folder
    CASES += [(main_dgl, SAME, {"run/.lock": b"", "run/last.pth": changed(**parts)}, "last.pth")]

for name in ("confusion", "predictions", "video"):
    CASES += [(valid, f"best.pth last.pth --{name} a.b", {}, f"--{name}")]
for name in ("json", "confusion", "predictions"):
    CASES += [(valid, f"best.pth --{name} nowhere/a.b", {}, "nowhere/a.b")]
CASES += [(valid, "best.pth --video a.flv --json a.json", {}, "--json"), (valid, "best.pth none.pth", {}, "none.pth")]
CASES += [(valid, "best.pth --video a.flv --linear_probe", {}, "--linear_probe")]


def write_start(path):
    """Write the beginning of a video, in which no frame is whole."""
    write_video(path, [90] * 40, tone=440)
    os.truncate(path, 3000)


CLIPS = [None, *VIDEOS, Path.mkdir, write_start]
CLIPS += [lambda path: write_video(path, [90] * 19, tone=440)]  # two frames at one a second
CLIPS += [lambda path: soundfile.write(path, np.zeros(16000), 16000, format="WAV")]
CASES += [(valid, "best.pth --num_frame 3 --video clip.mp4", {"clip.mp4": content}, "clip.mp4") for content in CLIPS]


def only(*ids):
    """Return what to write so that a corpus has these clips alone."""
    written = {"AudioWAV": Path.mkdir, "Image-01-FPS": Path.mkdir}
    for clip_id in ids:
        written |= {f"AudioWAV/{clip_id}.wav": b"", f"Image-01-FPS/{clip_id}": Path.mkdir}
    return written


CASES += [
    ("data/CREMAD/video_preprecessing.py", "--fps 0", {}, "--fps"),  # as the authors spell it
    ("data/VGGSound/video_preprecessing.py", "--fps 0", {}, "--fps"),
    (CREMAD_FRAMES, "--fps 0", {}, "--fps"),
    (CREMAD_FRAMES, "", {"VideoFlash": None}, "VideoFlash: No such file"),
    (CREMAD_FRAMES, "", {"VideoFlash": Path.mkdir}, "moved: no video of the dataset"),
    (KINETICS, "--source raw", {"raw/train/c": Path.mkdir, "raw/val": Path.mkdir}, "raw: no video .*<class>.*--source"),
    (KINETICS, "--source raw", {"raw/train/x.mp4": b"", "raw/val": Path.mkdir}, "raw: .*1 are outside of.*--source"),
    (make_split, "", {"Image-01-FPS": None}, "Image-01-FPS"),
    (make_split, "", only(), "video_preprocessing"),
    (make_split, "", only("1001_DFA_JOY_XX"), "1001_DFA_JOY_XX"),
    (make_split, "", only("holiday"), "holiday"),
    (make_split, "", only("1001_DFA_ANG_XX"), "only clip of ANG"),
    (make_split, "--by_actor", only("1001_DFA_ANG_XX", "1001_IEO_ANG_XX"), "two actors"),
    (make_split, "--test_ratio nan", {}, "--test_ratio"),
    (make_split, "--split_path train.csv", {}, "train.csv"),
    (make_split, "--test_ratio 1.5", {}, "--test_ratio"),
    (make_clips, "--root train.csv", {}, "train.csv"),
    (AVE_AUDIO, "", {}, "trainSet.txt"),
    (VGGSOUND_AUDIO, "--split_path /nonexistent", {}, "vggsound.csv"),
    (KINETICS_AUDIO, "--source /nonexistent", {}, "/nonexistent"),
    (KINETICS_AUDIO, "--workers 0", {}, "--workers"),
]


@pytest.mark.parametrize(("script", "flags", "written", "pattern"), CASES)
def test_bad_input_is_one_line_and_leaves_no_file(rejected, root, script, flags, written, pattern):
    for name, content in written.items():
        paths, contents = [*root.rglob(name)] or [root / name], content if isinstance(content, list) else [content]
        for path, each in zip(paths, cycle(contents), strict=False):
            write(path, each)
    before = tree(root.parent)
    first = {main_dgl: TRAINING, valid: VALIDATION}.get(script, ["--root", root])
    error = rejected(script, *first, *flags.split())
    assert re.search(pattern, error), error
    assert tree(root.parent) == before


@pytest.mark.parametrize("script", [CREMAD_FRAMES, AVE_FRAMES, AVE_AUDIO])
def test_videos(rejected, root, script):
    """Check files of which no clip can be decoded: only the list of failures is written."""
    write(root / "Image-01-FPS", None)
    for name in ("train", "val", "test"):
        (root / f"{name}Set.txt").write_text("".join(f"Banjo&{k}&good&0&10\n" for k in range(len(VIDEOS))))
    paths = [root / "AVE" / f"{k}.mp4" for k in range(6)]
    if "CREMAD" in script:
        paths = list((root / "VideoFlash").iterdir())
    for path, content in zip(paths, cycle(VIDEOS), strict=False):
        write(path, content)
    target = root / "new" / "a" if script == AVE_FRAMES else root
    report = target / ("failed_audio.csv" if "mp4" in script else "failed_frames.csv")
    error = rejected(script, "--root", root, "--workers", 2, "--target", target)
    assert f"{report}: no clip could be processed" in error
    assert len(report.read_text().splitlines()) == 1 + len(paths)
    assert not [*root.rglob("Image-*/*"), *root.rglob("Audios/*"), *root.rglob(".partial*")]


def test_a_checkpoint_names_no_file_to_write(root):
    """Check that a stranger's settings may describe the data, but not set files to write."""
    saved = torch.load("best.pth", weights_only=True)
    settings = saved["settings"] | {"json": str(root / "mine"), "cache_path": str(root / "there")}
    (root / "mine").write_text("mine")
    torch.save(saved | {"settings": settings}, root / "strange.pth")
    run_here(valid, "--ckpt_path", root / "strange.pth", *data_flags(root))
    assert (root / "mine").read_text() == "mine" and not (root / "there").exists()
