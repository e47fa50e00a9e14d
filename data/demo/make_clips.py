"""Make a small corpus in CREMA-D's raw form: drawn faces and synthetic voices in six emotions.

    python data/demo/make_clips.py [--root DIR] [--clips_per_class 40] [--seed 0] [--grade hard]

Writes <root>/VideoFlash/<id>.flv (480 x 360, 29.97 fps) and <root>/AudioWAV/<id>.wav (16 kHz, 16 bit). Every clip has
its own face, pitch, length and noise. Voices are easier to classify than faces, so that the modalities are imbalanced
as in the real data. The demo uses the grade `easy`. In the grade `hard`, which is for comparisons, emotions differ less
and there is more noise, so that methods can differ.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import soundfile
from scipy.signal import lfilter

from data.extraction import print_summary, quieten_decoders
from utils.config import at_least
from utils.errors import InputError, OneLineParser, run_script
from utils.pool import process_clips

RATE, FPS = 16000, 30000 / 1001
WIDTH, HEIGHT = 480, 360
FLV = 2  # codec tag of Sorenson H.263 in FLV


class Grade(NamedTuple):
    """Define a difficulty: strength of an emotion in voice and face, 0 to 1, and factors of noise and grain."""

    root: str
    voice: float = 1.0
    face: float = 1.0
    noise: float = 1.0
    grain: float = 1.0


GRADES = {
    "easy": Grade("train_test_data/demo/CREMA-D"),
    "hard": Grade("train_test_data/demo-hard/CREMA-D", voice=0.7, face=0.6, noise=2.0, grain=1.5),
}

# Voice: pitch factor, pitch slope over the clip and swing per syllable (octaves), tremor depth and creak, syllables
# per second, spectral tilt (0 dark to 1 bright), breath.
VOICES = {
    "NEU": dict(pitch=1.0, slope=0.0, swing=0.02, tremor=0.0, creak=0.0, syllables=3.5, tilt=0.5, breath=0.02),
    "HAP": dict(pitch=1.5, slope=0.5, swing=0.35, tremor=0.0, creak=0.0, syllables=5.0, tilt=0.7, breath=0.02),
    "SAD": dict(pitch=0.8, slope=-0.5, swing=0.05, tremor=0.0, creak=0.0, syllables=1.8, tilt=0.1, breath=0.1),
    "FEA": dict(pitch=1.7, slope=0.1, swing=0.05, tremor=0.12, creak=0.0, syllables=6.0, tilt=0.4, breath=0.3),
    "DIS": dict(pitch=0.7, slope=0.15, swing=-0.2, tremor=0.0, creak=0.8, syllables=2.4, tilt=0.3, breath=0.05),
    "ANG": dict(pitch=1.1, slope=-0.2, swing=0.15, tremor=0.0, creak=0.2, syllables=4.2, tilt=1.0, breath=0.05),
}

# Face: brow slant (inner end up +), brow height, eye opening, mouth curve (smile +), mouth opening, mouth width,
# one-sidedness of the mouth.
FACES = {
    "NEU": dict(slant=0.0, brow=0.0, eye=0.6, curve=0.0, open=0.1, width=1.0, skew=0.0),
    "HAP": dict(slant=0.1, brow=0.2, eye=0.5, curve=1.0, open=0.4, width=1.3, skew=0.0),
    "SAD": dict(slant=0.8, brow=0.0, eye=0.3, curve=-0.8, open=0.0, width=0.8, skew=0.0),
    "FEA": dict(slant=0.6, brow=0.9, eye=1.2, curve=-0.3, open=0.8, width=0.7, skew=0.0),
    "DIS": dict(slant=-0.4, brow=-0.2, eye=0.25, curve=-0.6, open=0.1, width=0.9, skew=1.0),
    "ANG": dict(slant=-0.9, brow=-0.6, eye=0.7, curve=-0.5, open=0.5, width=1.1, skew=0.0),
}

# Flush of the skin, blue, green and red: anger reddens, disgust goes green, sadness blue, fear violet, joy warm.
FLUSH = {
    "NEU": (0, 0, 0),
    "HAP": (-35, 5, 10),
    "SAD": (35, 0, -30),
    "FEA": (30, -25, 5),
    "DIS": (-20, 20, -35),
    "ANG": (-30, -35, 25),
}


def make_voice(emotion, seconds, rng, grade=GRADES["easy"]):
    """Return a voice of `seconds`: samples (n,) at 16 kHz in [-1, 1], and its loudness per sample (n,), 0 to 1."""
    neutral = VOICES["NEU"]
    voice = {name: value + (1 - grade.voice) * (neutral[name] - value) for name, value in VOICES[emotion].items()}
    t = np.arange(int(seconds * RATE)) / RATE
    syllable = 2 * np.pi * voice["syllables"] * rng.uniform(0.85, 1.15) * t + rng.uniform(0, 2 * np.pi)
    octaves = voice["slope"] * (t / seconds - 0.5) + voice["swing"] * np.sin(syllable)
    octaves = octaves + voice["tremor"] * np.sin(2 * np.pi * 9 * t) + 0.02 * np.cumsum(rng.normal(size=len(t))) / RATE
    speaker = 140 * 2 ** rng.uniform(-0.4, 0.4)
    phase = 2 * np.pi * np.cumsum(speaker * voice["pitch"] * 2**octaves) / RATE
    harmonics = np.arange(1, 25)
    strengths = harmonics ** -(2.2 - 1.4 * voice["tilt"])
    source = sum(strength * np.sin(k * phase) for k, strength in zip(harmonics, strengths, strict=True))
    source *= 1 - voice["creak"] * (np.sin(phase / 2) > 0)  # every second period is weak: a creaking voice
    source += voice["breath"] * rng.normal(size=len(t))
    for formant, bandwidth in ((rng.uniform(450, 750), 90), (rng.uniform(1100, 1900), 120), (2600, 180)):
        radius = np.exp(-np.pi * bandwidth / RATE)
        poles = [1, -2 * radius * np.cos(2 * np.pi * formant / RATE), radius**2]
        source = source + 0.5 * lfilter([1 - radius], poles, source)
    loudness = (0.5 - 0.5 * np.cos(syllable)) ** (1 - 0.5 * grade.voice * (emotion == "ANG"))
    loudness *= np.minimum(1, np.minimum(t, t[::-1]) / 0.05)
    samples = source * loudness
    samples = samples / np.abs(samples).max() * rng.uniform(0.3, 0.9)
    noise = grade.noise * 10 ** rng.uniform(-2.5, -1.4)
    return np.clip(samples + noise * rng.normal(size=len(t)), -1, 1), loudness


def draw_face(canvas, look, person, mouth, sway):
    """Draw a face on a BGR canvas (H, W, 3): `look` as in FACES, `mouth` opening by speech, `sway` (x, y) in pixels."""
    scale = person["scale"]

    def at(x, y):
        return int(person["x"] + sway[0] + scale * x), int(person["y"] + sway[1] + scale * y)

    def length(x):
        return max(1, int(scale * x))

    cv2.ellipse(canvas, at(0, -12), (length(88), length(112)), 0, 0, 360, person["hair"], -1, cv2.LINE_AA)
    cv2.ellipse(canvas, at(0, 0), (length(78), length(100)), 0, 0, 360, person["skin"], -1, cv2.LINE_AA)
    dark = (30, 30, 40)
    for side in (-1, 1):
        eye = at(side * 32, -18)
        cv2.ellipse(canvas, eye, (length(15), length(14 * look["eye"])), 0, 0, 360, (245, 245, 245), -1, cv2.LINE_AA)
        cv2.circle(canvas, eye, length(min(7, 12 * look["eye"])), person["iris"], -1, cv2.LINE_AA)
        height = -44 - 14 * look["brow"]
        inner, outer = at(side * 14, height - 12 * look["slant"]), at(side * 50, height + 12 * look["slant"])
        cv2.line(canvas, inner, outer, person["hair"], length(7), cv2.LINE_AA)
    cv2.line(canvas, at(0, -8), at(6, 16), dark, length(3), cv2.LINE_AA)
    u = np.linspace(-1, 1, 15)
    middle = 48 + 16 * look["curve"] * (0.5 - u**2) - 10 * look["skew"] * u
    gap = (4 + 22 * look["open"] + 14 * mouth) * np.sqrt(1 - u**2) / 2
    across = 34 * look["width"] * u
    outline = [at(x, y) for x, y in zip(across, middle - gap, strict=True)]
    outline += [at(x, y) for x, y in zip(across[::-1], (middle + gap)[::-1], strict=True)]
    cv2.fillPoly(canvas, [np.array(outline, np.int32)], (50, 40, 130), cv2.LINE_AA)


def make_video(path, emotion, seconds, loudness, rng, grade):
    """Write the clip's FLV: a face that grows into its expression while its mouth follows the loudness (n,)."""
    strength = grade.face * rng.uniform(0.6, 1.2)
    jitter = {name: rng.normal(scale=0.15) for name in FACES["NEU"]}
    skin = np.array([170, 195, 235]) * rng.uniform(0.5, 1.0) + strength * np.array(FLUSH[emotion])
    person = {
        "x": WIDTH / 2 + rng.uniform(-30, 30),
        "y": HEIGHT / 2 + rng.uniform(-15, 15),
        "scale": rng.uniform(1.3, 1.65),
        "skin": tuple(int(c) for c in np.clip(skin, 0, 255)),
        "hair": tuple(int(c) for c in np.array([25, 40, 60]) * rng.uniform(0.3, 1.5)),
        "iris": tuple(int(c) for c in rng.integers(20, 140, 3)),
    }
    backdrop = np.full((HEIGHT, WIDTH, 3), rng.uniform(90, 210) + rng.uniform(-20, 20, 3), np.uint8)
    noise = (
        rng.normal(scale=grade.grain * rng.uniform(4, 20), size=(2 * HEIGHT, 2 * WIDTH, 3))
        .clip(-127, 127)
        .astype(np.int8)
    )
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, FLV, FPS, (WIDTH, HEIGHT))
    count = int(seconds * FPS)
    for number in range(count):
        amount = strength * (0.7 + 0.3 * number / count)
        look = {
            name: FACES["NEU"][name] + amount * (FACES[emotion][name] - FACES["NEU"][name]) + jitter[name]
            for name in jitter
        }
        look["eye"], look["open"] = max(look["eye"], 0.08), max(look["open"], 0)
        canvas = backdrop.copy()
        sway = (6 * np.sin(0.11 * number), 4 * np.sin(0.17 * number))
        draw_face(canvas, look, person, loudness[int(number / FPS * RATE)], sway)
        top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
        grain = noise[top : top + HEIGHT, left : left + WIDTH]
        writer.write(cv2.add(canvas, grain, dtype=cv2.CV_8U))
    writer.release()


def make_clip(root, clip_id, grade, seed):
    """Write one clip's audio and video, each whole or not at all; return "done" or "already there"."""
    wav, flv = root / "AudioWAV" / f"{clip_id}.wav", root / "VideoFlash" / f"{clip_id}.flv"
    if wav.exists() and flv.exists():
        return "already there"
    rng = np.random.default_rng(seed)
    emotion, seconds = clip_id.split("_")[2], rng.uniform(1.3, 2.4)
    samples, loudness = make_voice(emotion, seconds, rng, grade)
    partial_wav, partial_flv = wav.with_suffix(".partial.wav"), flv.with_suffix(".partial.flv")
    soundfile.write(partial_wav, samples, RATE, subtype="PCM_16")
    make_video(partial_flv, emotion, seconds, loudness, rng, grade)
    partial_wav.replace(wav)
    partial_flv.replace(flv)
    return "done"


def main():
    parser = OneLineParser(description="Make the demo's clips.")
    roots = ", ".join(f"{grade.root} for {name}" for name, grade in GRADES.items())
    parser.add_argument("--root", type=Path, metavar="DIR", help=f"folder of the dataset (default: {roots})")
    parser.add_argument(
        "--clips_per_class", type=at_least(2), default=40, metavar="N", help="clips per emotion (default: 40)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of all draws (default: 0)")
    parser.add_argument("--grade", choices=GRADES, default="easy", help="difficulty (default: easy)")
    args = parser.parse_args()
    args.root = args.root or Path(GRADES[args.grade].root)

    for name in ("AudioWAV", "VideoFlash"):
        try:
            (args.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{args.root / name}: {error.strerror}; choose another --root") from None
    jobs = {}
    for label, emotion in enumerate(VOICES):
        for k in range(args.clips_per_class):
            clip_id = f"{1001 + k % 10}_D{k // 10:02d}_{emotion}_XX"
            jobs[clip_id] = (args.root, clip_id, GRADES[args.grade], (args.seed, label, k))
    print_summary(*process_clips(make_clip, jobs, start=quieten_decoders))


if __name__ == "__main__":
    run_script(main)
