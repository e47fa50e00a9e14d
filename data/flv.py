"""FLV clips cut down to the pictures that are wanted: decoding is nearly all of the time that extraction takes."""

import struct

SIGNATURE = b"FLV"
AUDIO, VIDEO, SCRIPT = 8, 9, 18  # types of a tag
HEAD, TAIL = 11, 4  # bytes before and after a tag's data
WORD = struct.Struct(">I").unpack_from
SORENSON = 2  # codec number of FLV's own H.263, in which a tag is a picture and pictures stay in order
KEY, DISPOSABLE = 1, 3  # the kinds of a picture are 1 to 3; one that is no key depends on those since the last key


def first_tag(data):
    """Where an FLV file's first tag begins: behind its header."""
    return int.from_bytes(data[5:9], "big") + TAIL


def tags(data):
    """Yield (start, end) of an FLV file's tags, HEAD and TAIL included; the last one may lead beyond the file.

    Layout as in Adobe's "Video File Format Specification", version 10, annex E.
    """
    position, length = first_tag(data), len(data)
    while position + HEAD < length:
        end = position + HEAD + (WORD(data, position)[0] & 0xFFFFFF) + TAIL  # behind the type
        yield position, end
        position = end


def lengths_agree(data, start, end):
    """Whether a tag's TAIL gives its length once more, as it is, or as some writers miscount it."""
    length = end - TAIL - start
    return WORD(data, end - TAIL)[0] in (length, length - 1, length - HEAD)


def shorten_flv(data, step):
    """The FLV file `data` without sound and without the pictures that frames 0, step, 2 step, ... do not depend on.

    Returns:
        (bytes, numbers of the pictures left in it), or None if `data` is another kind of file, or damaged.
    """
    if data[:3] != SIGNATURE:
        return None
    parts, numbers = [data[:4], b"\1", data[5 : first_tag(data)]], []  # 1: video alone
    number, since_key = 0, []
    for start, end in tags(data):
        tag = data[start:end]
        if len(tag) < end - start or WORD(tag, end - TAIL - start)[0] != end - TAIL - start:
            return None
        if tag[0] == VIDEO:
            kind, codec = divmod(tag[HEAD], 16)
            if codec != SORENSON or not KEY <= kind <= DISPOSABLE:
                return None
            if kind == KEY:
                since_key = []
            since_key.append((number, tag))
            if number % step == 0:
                numbers += [number for number, _ in since_key]
                parts += [tag for _, tag in since_key]
                since_key = []
            number += 1
        elif tag[0] == SCRIPT:
            parts.append(tag)
        elif tag[0] != AUDIO:
            return None
    return b"".join(parts), numbers
