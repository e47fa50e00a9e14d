"""Find faults in the structure of a video file.

FFmpeg decodes half a file in most containers without a message. It also does not report a zeroed box of a fragmented
MP4, a hole in an AVI or a wrong checksum in a Matroska file.

Layouts: ISO/IEC 14496-12 (MP4, MOV, 3GP), RFC 9559 (Matroska, WebM), Microsoft's AVI RIFF and Adobe's FLV file formats,
ISO/IEC 11172-1 and 13818-1 (MPEG program streams).
"""

import mmap
import os
import struct
import zlib

BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide", b"pnot", b"uuid")
EBML, SEGMENT, CLUSTER = b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x1fC\xb6u"
CRC32, VOID = b"\xbf", b"\xec"
PACK, END = b"\0\0\1\xba", b"\0\0\1\xb9"
RIFF_SLACK = 16  # bytes; some writers miscount by up to this


def find_fault(path):
    """Return "truncated: ..." or "damaged: ..."; "" for a complete file, and for an unknown kind of file."""
    if not os.path.getsize(path):
        return ""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[4:8] in BOXES:
            return fault_of_mp4(data)
        if data[:4] == EBML:
            return fault_of_matroska(data)
        if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
            return fault_of_avi(data)
        if data[:3] == b"FLV":
            return fault_of_flv(data)
        return fault_of_program_stream(data)


def truncated(data, expected):
    return f"truncated: {len(data)} of {expected} bytes; download it again"


def damaged(what, position):
    return f"damaged: no {what} at byte {position}; download it again"


def is_name(kind):
    """Return True if the four bytes of a box's or chunk's type can be one."""
    return kind.isascii() and kind.decode().isprintable()


def fault_of_mp4(data):
    """Return the fault of an MP4 file, "" without one: follow its boxes to the end."""
    position = 0
    while position + 8 <= len(data):
        size, kind, head = *struct.unpack(">I4s", data[position : position + 8]), 8
        if size == 1:  # 64 bits follow
            size, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:  # to the end
            size = len(data) - position
        if size < head or not is_name(kind):
            break
        start, position = position + head, position + size
        expected = position + (segment_bytes(data[start:position]) if kind == b"sidx" else 0)
        if expected > len(data) and kind in BOXES:
            return truncated(data, expected)
    # anything may follow the last box, except another box
    if any(data.find(kind, position) > 0 for kind in (b"moov", b"moof", b"mdat")):
        return damaged("box", position)
    return ""


def segment_bytes(sidx):
    """Return how many bytes of segments follow a segment index."""
    try:
        wide = sidx[0] > 0
        position = 28 if wide else 20
        gap = int.from_bytes(sidx[position - 8 : position] if wide else sidx[position - 4 : position], "big")
        (count,) = struct.unpack_from(">H", sidx, position + 2)
        sizes = struct.unpack_from(">" + "I8x" * count, sidx, position + 4)
    except (IndexError, struct.error):
        return 0
    return gap + sum(size & 0x7FFFFFFF for size in sizes)


def element(data, position):
    """Return (id, start of the content, end or None if unknown) of the EBML element at a position; None without one."""
    if position + 2 > len(data) or not data[position]:
        return None
    start = position + 9 - data[position].bit_length()
    name = data[position:start]
    if start >= len(data) or not data[start]:
        return None
    width = 9 - data[start].bit_length()
    size = int.from_bytes(data[start : start + width], "big") & ((1 << 7 * width) - 1)
    start += width
    return name, start, None if size == (1 << 7 * width) - 1 else start + size


def fault_of_matroska(data):
    """Return the fault of a Matroska file, "" without one: follow its top elements, and compare FFmpeg's checksums."""
    head = element(data, 0)
    segment = element(data, head[2]) if head and head[2] else None
    if not segment or segment[0] != SEGMENT:
        return ""  # FFmpeg reports it
    _, position, end = segment
    if end and end > len(data):
        return truncated(data, end)
    live = False  # clusters of a live recording have no size: their elements follow like top elements
    while position < (end or len(data)):
        part = element(data, position)
        if not part or not live and len(part[0]) != 4 and part[0] not in (VOID, CRC32):
            return "" if live and position + 12 > len(data) else damaged("element", position)
        name, start, stop = part
        if stop and stop > len(data):
            return truncated(data, stop)
        live = live or stop is None
        checksum = data[start + 2 : start + 6] if data[start : start + 2] == CRC32 + b"\x84" and not live else None
        if checksum and zlib.crc32(data[start + 6 : stop]) != int.from_bytes(checksum, "little"):
            return f"damaged: the checksum of bytes {position} to {stop} is wrong; download it again"
        position = start if stop is None else stop
    return ""


def fault_of_avi(data):
    """Return the fault of an AVI file, "" without one: follow its chunks, also those in lists of frames and audio."""
    position = 0
    while data[position : position + 4] == b"RIFF":  # a file larger than 1 GB has several
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if end == position + 8:  # never written
            return "truncated: its writer was stopped before the end; download it again"
        if end > len(data) + RIFF_SLACK:
            return truncated(data, end)
        if wrong := wrong_chunk(data, position + 12, min(end, len(data))):
            return damaged("chunk", wrong)
        position = end + end % 2
    return ""


def wrong_chunk(data, position, end):
    """Return the position where one chunk of an AVI does not follow another, else 0."""
    while position + 8 <= end:
        kind, size = struct.unpack("<4sI", data[position : position + 8])
        if is_name(kind):
            inside = kind == b"LIST" and data[position + 8 : position + 12] in (b"movi", b"rec ")
            position += 12 if inside else 8 + size + size % 2
        elif data[position - 1 : position + 3].isalnum():
            position -= 1  # its writer leaves out the padding
        else:
            return position
    return 0


def fault_of_flv(data):
    """Return the fault of an FLV file, "" without one: follow its tags. FFmpeg does not report half a header."""
    position = start = int.from_bytes(data[5:9], "big") + 4
    wrong = 0
    while position + 11 <= len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        behind = data[position + 11 + size : position + 15 + size]  # the tag's size again, which some writers miscount
        if len(behind) == 4 and int.from_bytes(behind, "big") not in (size + 11, size + 10, size):
            wrong = wrong or position
        position += 15 + size
    if start > len(data) or position - 4 <= len(data) <= position:  # some writers leave out the last size
        return ""
    if wrong:
        return f"damaged: the length of the tag at byte {wrong} is wrong; download it again"
    return truncated(data, max(position - 4, len(data) + 1))


def fault_of_program_stream(data):
    """Return the fault of an MPEG file, "" without one: follow its packets. FFmpeg does not report half a header."""
    position = 0
    while data[position : position + 3] == PACK[:3] and data[position : position + 4] != END:
        if data[position : position + 4] != PACK:
            position += 6 + int.from_bytes(data[position + 4 : position + 6], "big")
        elif data[position + 4 : position + 5] < b"\x40":  # of MPEG-1
            position += 12
        else:
            position += 14 + (data[position + 13] & 7 if position + 13 < len(data) else 0)
        if position > len(data):
            return truncated(data, position)
    return ""
