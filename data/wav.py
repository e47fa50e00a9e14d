"""Wav files whose headers lie: what is there of them is read, what cannot be sound is told."""

import io
import os
import struct

from utils.files import is_pointer

STREAM = 0x7FFFF000  # sizes from here on are those of a stream, whose length was not known when they were written
RATES = range(1000, 768001)  # Hz; beyond them resampling would fill the memory, and nothing records so
PADDING = 1  # byte, which may be missing behind the last chunk
CHUNK = struct.Struct("<4sI")


def chunks(file, position, size):
    """Yield (id, start of its content, its length by the header) of each chunk from `position` on in `size` bytes."""
    while position + CHUNK.size <= size:
        file.seek(position)
        kind, length = CHUNK.unpack(file.read(CHUNK.size))
        yield kind, position + CHUNK.size, length
        position += CHUNK.size + length + length % 2


def find_chunks(path):
    """What is in a RIFF wav; None for other files.

    Returns:
        (format chunk, start of the samples, their bytes by the header, bytes from there to the end of the file).
    """
    size, form = os.path.getsize(path), b""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        for kind, start, length in chunks(file, 12, size):
            if kind == b"fmt ":
                file.seek(start)
                form = file.read(min(length, 40))
            elif kind == b"data":
                behind = chunks(file, start + length + length % 2, size)
                if not all(is_chunk(*chunk, size) for chunk in behind):  # but more sound
                    length = 0
                return form, start, length, size - start
    return None


def is_chunk(kind, start, length, size):
    return kind.isascii() and kind.decode().isprintable() and start + length <= size + PADDING


def wav_fault(path):
    """Why a sound file cannot be what it should be, in words; "" where nothing speaks against it.

    Raises:
        OSError: it cannot be read.
    """
    if is_pointer(path):
        return "a Git LFS pointer, not the sound: run `git lfs pull` where you cloned the dataset"
    found = find_chunks(path)
    if not found:
        return ""
    form, start, length, there = found
    if len(form) >= 8 and (rate := int.from_bytes(form[4:8], "little")) not in RATES:
        return f"a sampling rate of {rate} Hz, which no sound has"
    if there + PADDING < length < STREAM:
        return f"truncated, {start + there} of {start + length} bytes"
    return ""


def mended(path):
    """A sound file opened to be read, or in memory with the right sizes where those in a wav's header are wrong."""
    found = find_chunks(path)
    if not found:
        return open(path, "rb")
    form, start, length, there = found
    with open(path, "rb") as file:
        riff = CHUNK.unpack(file.read(CHUNK.size))[1] + CHUNK.size
        if 0 < length <= there and start + length <= riff <= start + there + PADDING:
            return open(path, "rb")
        file.seek(start)
        samples = file.read(length if 0 < length <= there else there)
    parts = (b"WAVE", CHUNK.pack(b"fmt ", len(form)), form, CHUNK.pack(b"data", len(samples)), samples)
    return io.BytesIO(CHUNK.pack(b"RIFF", sum(map(len, parts))) + b"".join(parts))
