"""What a container promises, read from its own bytes: whether a file goes on to its end, and how long its tracks are.

A decoder plays what is there of half a file, in most containers without a word. Layouts: ISO/IEC 14496-12 (MP4, MOV,
3GP), RFC 9559 (Matroska, WebM), Microsoft's AVI RIFF and Adobe's FLV file formats, ISO/IEC 11172-1 and 13818-1 (MPEG
program streams). Of other kinds nothing is said. `data` is bytes or a memory map throughout.
"""

import re
import struct
import zlib

from data import flv

BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide", b"pnot", b"uuid")
EBML, SEGMENT, CRC32 = b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\xbf"
CLUSTER, TRACKS, TRACK = b"\x1fC\xb6u", b"\x16T\xaek", b"\xae"
PACK = b"\0\0\1\xba"
RIFF_SLACK = 16  # bytes by which writers are seen to miscount
TOLERANCE = 1  # s by which containers of real clips are seen to be wrong


def fault(data):
    """Why the file is not whole: "truncated: ..." or "damaged: ..."; "" where nothing speaks against it."""
    if data[4:8] in BOXES:
        return fault_of_mp4(data)
    if data[:4] == EBML:
        return fault_of_matroska(data)
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return fault_of_avi(data)
    if data[:3] == flv.SIGNATURE:
        return fault_of_flv(data)
    if data[:4] == PACK:
        return fault_of_program_stream(data)
    return ""


def truncated(data, promised):
    return f"truncated: {len(data)} of {promised} bytes; download it again"


def boxes(data, start, end):
    """Yield (type, start of its content, end) of the boxes between two positions of an MP4; the last may lead on."""
    while start + 8 <= end:
        size, kind, head = *struct.unpack(">I4s", data[start : start + 8]), 8
        if size == 1:  # 64 bits follow
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:  # to the end
            size = end - start
        if size < head:
            return
        yield kind, start + head, start + size
        start += size


def fault_of_mp4(data):
    position = 0
    for kind, start, end in boxes(data, 0, len(data)):
        if not (kind.isascii() and kind.decode().isprintable()):
            break
        position = end
        if kind == b"sidx":  # the sizes of the segments that follow
            end += segment_bytes(data[start:end])
        if end > len(data) and kind in BOXES:
            return truncated(data, end)
    # what lies behind the last box may be anything, but not another one
    if any(data.find(kind, position) > 0 for kind in (b"moov", b"moof", b"mdat")):
        return f"damaged: no box at byte {position}; download it again"
    return ""


def segment_bytes(sidx):
    """How many bytes of segments a segment index promises behind itself."""
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
    """(id, start of its content, end or None where the size is unknown) of the EBML element there; None for none."""
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
    """Its top elements carry checksums where FFmpeg wrote them, as it does where a downloader puts tracks together."""
    head = element(data, 0)
    segment = element(data, head[2]) if head and head[2] else None
    if not segment or segment[0] != SEGMENT:
        return ""  # a decoder says what is wrong
    _, position, end = segment
    if end and end > len(data):
        return truncated(data, end)
    end = end or len(data)
    while position < end:
        part = element(data, position)
        if not part or len(part[0]) != 4 and part[0] not in (b"\xec", CRC32):  # the latter fill up room
            return f"damaged: no element at byte {position}; download it again"
        name, start, stop = part
        if stop is None:  # a live recording; what follows is what the cluster holds
            position = start if name == CLUSTER else end
            return fault_of_live_matroska(data, position)
        if stop > len(data):
            return truncated(data, stop)
        checksum = data[start + 2 : start + 6] if data[start : start + 2] == CRC32 + b"\x84" else None
        if checksum and zlib.crc32(data[start + 6 : stop]) != int.from_bytes(checksum, "little"):
            return f"damaged: the checksum of bytes {position} to {stop} is wrong; download it again"
        position = stop
    return ""


def fault_of_live_matroska(data, position):
    """The same for one without sizes of clusters: their elements one behind the other, to the end of the file."""
    while position < len(data):
        part = element(data, position)
        if not part:
            return "" if position + 12 > len(data) else f"damaged: no element at byte {position}; download it again"
        name, start, stop = part
        if stop and stop > len(data):
            return truncated(data, stop)
        position = start if stop is None else stop
    return ""


def fault_of_avi(data):
    position = 0
    while data[position : position + 4] == b"RIFF":  # more than one where it is larger than a GB
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if end == position + 8:  # never written
            return "truncated: its writer was stopped before the end; download it again"
        if end > len(data) + RIFF_SLACK:
            return truncated(data, end)
        if wrong := wrong_chunk(data, position + 12, min(end, len(data))):
            return f"damaged: no chunk at byte {wrong}; download it again"
        position = end + end % 2
    return ""


def wrong_chunk(data, position, end):
    """Where an AVI's chunks, also those in its lists of pictures and sound, do not follow on each other; else 0."""
    while position + 8 <= end:
        kind, size = struct.unpack("<4sI", data[position : position + 8])
        if not kind.isascii() or not kind.decode().isprintable():
            if not data[position - 1 : position + 3].isalnum():
                return position
            position -= 1  # its writer leaves out the padding
            continue
        inside = kind == b"LIST" and data[position + 8 : position + 12] in (b"movi", b"rec ")
        position += 12 if inside else 8 + size + size % 2
    return 0


def fault_of_flv(data):
    start, end = 0, flv.first_tag(data)
    if end > len(data):
        return ""  # no header; a decoder says what is wrong
    for start, end in flv.tags(data):  # noqa: B007
        pass
    if end - flv.TAIL > len(data) or end < len(data):
        for tag, end_of_tag in flv.tags(data):
            if end_of_tag <= len(data) and not flv.lengths_agree(data, tag, end_of_tag):
                return f"damaged: the length of the tag at byte {tag} is wrong; download it again"
        return truncated(data, max(end - flv.TAIL, len(data) + 1))
    found = re.search(rb"\x00\x08duration\x00(.{8})", data[:4096], re.DOTALL)
    promised = struct.unpack(">d", found[1])[0] if found else 0
    seconds = int.from_bytes(data[start + 7 : start + 8] + data[start + 4 : start + 7], "big") / 1000
    if seconds < promised - TOLERANCE:
        return f"truncated: {seconds:.1f} of {promised:.1f} s; download it again"
    return ""


def fault_of_program_stream(data):
    position = 0
    while data[position : position + 3] == PACK[:3]:
        kind = data[position + 3 : position + 4]
        if kind == b"\xb9":  # the end
            return ""
        if kind == PACK[3:]:
            second = data[position + 4 : position + 5] >= b"\x40"  # of MPEG-2
            size = 14 + (data[position + 13] & 7 if position + 13 < len(data) else 0) if second else 12
        else:
            size = 6 + int.from_bytes(data[position + 4 : position + 6], "big")
        position += size
        if position > len(data):
            return truncated(data, position)
    return ""


def tracks(data):
    """[("video", "sound" or None, seconds by the headers or 0), ...] of an MP4, an AVI or a Matroska; else []."""
    if data[4:8] in BOXES:
        return list(tracks_of_mp4(data))
    if data[:4] == b"RIFF":
        return list(tracks_of_avi(data))
    return list(tracks_of_matroska(data)) if data[:4] == EBML else []


def tracks_of_mp4(data):
    """Yield (kind, seconds as they are shown, so without what an edit list leaves out) of each track."""
    for name, start, end in boxes(data, 0, len(data)):
        if name == b"moov":
            moov = data[start:end]
            parts = list(boxes(moov, 0, len(moov)))
            scale = next((field(moov, start, 12) for part, start, _ in parts if part == b"mvhd"), 0)
            for part, start, end in parts:
                if part == b"trak" and scale:
                    yield track_of_mp4(moov, start, end, scale)


def track_of_mp4(moov, start, end, scale):
    """(kind, seconds) of a track: those of its edit list, else those of its header."""
    kind, length, edits = None, 0, []
    for part, at, stop in boxes(moov, start, end):
        inner = {name: inside for name, inside, _ in boxes(moov, at, stop)} if part in (b"mdia", b"edts") else {}
        if part == b"tkhd":
            length = field(moov, at, 20)
        elif b"hdlr" in inner:
            kind = {b"vide": "video", b"soun": "sound"}.get(moov[inner[b"hdlr"] + 8 : inner[b"hdlr"] + 12])
        elif b"elst" in inner:
            wide, at = moov[inner[b"elst"]] == 1, inner[b"elst"] + 8
            edits = [edit for edit, *_ in struct.iter_unpack(">QqI" if wide else ">IiI", moov[at:stop])]
    return kind, (sum(edits) or length) / scale


def field(data, start, position):
    """A number of a header whose times are of 32 bits in version 0 and of 64 in version 1; `position` in version 0."""
    if data[start : start + 1] == b"\1":  # two times stand before it
        wide = position == 20  # the length itself
        return int.from_bytes(data[start + position + 8 : start + position + 12 + 4 * wide], "big") % (2**64 - 1)
    return int.from_bytes(data[start + position : start + position + 4], "big") % (2**32 - 1)


def tracks_of_avi(data):
    """Yield (kind, seconds) of each stream's header."""
    header = data[:16384]
    for found in re.finditer(rb"strh(?=.{4}(vids|auds))", header, re.DOTALL):
        try:
            scale, rate, _, length = struct.unpack_from("<4I", header, found.start() + 28)
        except struct.error:
            return
        yield {b"vids": "video", b"auds": "sound"}[found[1]], length * scale / rate if rate else 0


def elements(data, start, end):
    """Yield (id, start of its content, end) of the EBML elements between two positions, as far as sizes are known."""
    while start < end and (part := element(data, start)) and part[2]:
        yield part
        start = part[2]


def tracks_of_matroska(data):
    head = element(data, 0)
    segment = element(data, head[2]) if head and head[2] else None
    if segment:
        for name, start, end in elements(data, segment[1], segment[2] or len(data)):
            if name == CLUSTER:
                return
            for entry, inside, stop in elements(data, start, end) if name == TRACKS else ():
                if entry == TRACK:
                    kinds = [data[at] for part, at, _ in elements(data, inside, stop) if part == b"\x83"]
                    yield {1: "video", 2: "sound"}.get(*kinds[:1]) if kinds else None, 0
