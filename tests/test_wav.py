"""Wav files as they are in the wild: sizes that lie, absurd rates, pointers."""

import io
import re
import struct

import numpy as np
import pytest
import soundfile

from dataset.base import AudioSettings, Clip
from dataset.clips import Decoder, load_waveform
from utils.errors import InputError
from utils.pool import ClipError

RATE = 16000
SAMPLES = (8000 * np.sin(np.arange(RATE) / 7)).astype("<i2")


def wav(riff=None, data=None, rate=RATE, behind=b"", subtype="PCM_16", samples=SAMPLES):
    """A wav of 1 s whose header gives other sizes or another rate, with `behind` behind its samples."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, subtype=subtype, format="WAV")
    content = bytearray(file.getvalue())
    struct.pack_into("<I", content, 24, rate)
    at = content.index(b"data") + 4
    for position, size in ((4, riff), (at, data)):
        if size is not None:
            struct.pack_into("<I", content, position, size)
    return bytes(content) + behind


LIST = b"LIST\x04\0\0\0abcd"
LIES = {
    "small RIFF": wav(riff=100),
    "no RIFF": wav(riff=0),
    "large RIFF": wav(riff=10**6),
    "a stream": wav(riff=0xFFFFFFFF, data=0xFFFFFFFF),
    "a stream's data": wav(data=0x7FFFF024),
    "24 bits": wav(riff=100, subtype="PCM_24"),
    "a list behind": wav(behind=LIST),
    "a list behind, RIFF small": wav(behind=LIST, riff=50),
}


@pytest.mark.parametrize("kind", LIES)
def test_all_samples_are_read_whatever_the_header_says(tmp_path, kind):
    (tmp_path / "x.wav").write_bytes(LIES[kind])
    samples = load_waveform(tmp_path / "x.wav", RATE)
    assert len(samples) == RATE and np.abs(samples - SAMPLES / 2**15).max() < 1e-4


FAULTS = {
    "truncated": (wav()[: RATE // 2], "truncated, 8000 of 32044 bytes"),
    "1 Hz": (wav(rate=1), "a sampling rate of 1 Hz"),
    "4 GHz": (wav(rate=2**32 - 1), "a sampling rate of 4294967295 Hz"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "a Git LFS pointer, not the audio: run",
    ),
    "one sample": (wav(samples=SAMPLES[5:6]), "holds 1 sample(s), too short to be heard"),
    "text": (b"404 Not Found\n", "not a readable audio file"),
    "header alone": (wav()[:30], "not a readable audio file"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_reasons_are_sentences_also_in_the_list_of_what_was_skipped(tmp_path, kind):
    content, words = FAULTS[kind]
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(words)):
        load_waveform(path, RATE)
    decoder = Decoder(AudioSettings(rate=RATE, seconds=1, n_fft=512, hop=256), num_frame=1, size=32, training=False)
    with pytest.raises(ClipError, match=re.escape(words)) as error:
        decoder.arrays(Clip("x", str(path), str(tmp_path), ("0.jpg",), 0))
    assert "git lfs pull" in str(error.value) or kind != "pointer"
