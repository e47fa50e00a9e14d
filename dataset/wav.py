"""Find out why a wav file cannot be used."""

import os
import struct

from utils.files import is_pointer

STREAM = 0x7FFFF000  # larger sizes are those of a stream, whose length was unknown when its header was written
RATES = range(1000, 768001)  # Hz; a damaged header can have any rate, and resampling from it could fill the memory
PADDING = 1  # byte, which may be missing after the last chunk
CHUNK = struct.Struct("<4sI")


def wav_fault(path):
    """Return why a wav file cannot be used; "" if nothing is wrong with its header, or for other files.

    Raises:
        OSError: it cannot be read.
    """
    if is_pointer(path):
        return "a Git LFS pointer, not the audio: run `git lfs pull` where you cloned the dataset"
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        form = file.read(12)
        if form[:4] != b"RIFF" or form[8:] != b"WAVE":
            return ""
        while len(head := file.read(CHUNK.size)) == CHUNK.size:
            kind, length = CHUNK.unpack(head)
            end = file.tell() + length
            if kind == b"fmt " and (rate := int.from_bytes(file.read(8)[4:], "little")) not in RATES:
                return f"a sampling rate of {rate} Hz, which no audio has"
            if kind == b"data":
                return f"truncated, {size} of {end} bytes" if length < STREAM and end > size + PADDING else ""
            file.seek(end + length % 2)
    return ""
