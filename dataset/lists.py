"""The lists that come with the datasets: which clips there are, of which class and in which split."""

import csv

from utils.errors import InputError, warn_once
from utils.files import folder_hint


def read_rows(path, form, delimiter=",", remedy="get or create it as described in the dataset's readme"):
    """Yield (where, cells) for every row of a UTF-8 list without a header; `where` names file and line for messages.

    Cells are stripped. Blank lines and a byte order mark are ignored.

    Args:
        form: what a row looks like, such as '<id>,<class>'.
        remedy: what to do if the list is missing, for the message.

    Raises:
        InputError: the list is missing, empty or not text, or a row has another number of cells.
    """
    width, empty = form.count(delimiter) + 1, True
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if not row:
                    continue
                where, empty = f"{path}, line {reader.line_num}", False
                if len(row) != width:
                    raise InputError(f"{where}: {delimiter.join(row)!r} is not {form!r}; fix the line")
                yield where, [cell.strip() for cell in row]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such list{folder_hint(path)}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable, or give another folder of lists") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a readable UTF-8 list of {form!r} rows; get or create it again") from None
    if empty:
        raise InputError(f"{path}: an empty list; get or create it again")


def check_name(name, where):
    """Return `name`; raise InputError if it is empty or would lead to another folder."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{where}: {name!r} is not a clip's name; fix the line")
    return name


def whole_number(text, where):
    """Return a text as a number of seconds, 0 or more; raise InputError if it is none."""
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{where}: {text!r} is not a number of seconds; fix the line")
    return int(text)


def read_split(path, classes, **missing):
    """Read a split list, rows `<id>,<class>`; return [(id, label), ...]. `missing`: a remedy as in `read_rows`.

    Raises:
        InputError: the list or a row is wrong.
    """
    labels = {name: label for label, name in enumerate(classes)}
    rows = []
    for where, (clip_id, name) in read_rows(path, "<id>,<class>", **missing):
        if name not in labels:
            raise InputError(
                f"{where}: {clip_id} has the unknown class {name!r}; known: {', '.join(classes)}; fix the line"
            )
        rows.append((where, check_name(clip_id, where), labels[name]))
    return [(clip_id, label) for clip_id, label in without_repeats(path, rows)]


def without_repeats(path, rows):
    """Yield the rows (id, ...) of a list's rows (where, id, ...), each id once; warn of repeated rows.

    Raises:
        InputError: two rows of one id differ.
    """
    first, repeats = {}, 0
    for where, clip_id, *rest in rows:
        if clip_id not in first:
            first[clip_id] = where, rest
            yield clip_id, *rest
        elif first[clip_id][1] == rest:
            repeats += 1
        else:
            lines = f"{first[clip_id][0]} and {where.rpartition(', ')[2]}"
            raise InputError(f"{lines}: {clip_id} has two classes or splits; remove one of the lines")
    if repeats:
        warn_once(f"{path}: {repeats} repeated row(s) are left out")


def read_classes(path):
    """Read a list of class names, one per line; return them in order, with underscores instead of spaces.

    Raises:
        InputError: the list or a row is wrong.
    """
    return [check_name(name, where).replace(" ", "_") for where, (name,) in read_rows(path, "<class>")]


def read_vggsound(path):
    """Read vggsound.csv, rows `<youtube id>,<start>,<label>,<split>`; return [(clip id, label, split), ...].

    The clip id is `<youtube id>_<start, 6 digits>`.

    Raises:
        InputError: the list or a row is wrong.
    """
    rows, remedy = [], "get it as described in data/VGGSound/README.md"
    for where, (video, start, label, split) in read_rows(path, "<id>,<start>,<label>,<split>", remedy=remedy):
        if split not in ("train", "test"):
            raise InputError(f"{where}: the split is {split!r}, not train or test; fix the line")
        rows.append((where, f"{check_name(video, where)}_{whole_number(start, where):06d}", label, split))
    return list(without_repeats(path, rows))


def vggsound_aliases(clip_id):
    """Return other names of a VGGSound clip that downloaders use: seconds not padded, as a fraction, or left out."""
    video, _, start = clip_id.rpartition("_")
    return f"{video}_{int(start)}", f"{video}_{int(start)}.000", video


def read_ave(path):
    """Read a list of AVE, rows `category&id&quality&start&end`; return [(id, category), ...].

    A row is an event. A video can have several events, even of two categories: all are kept, with a warning.

    Raises:
        InputError: the list or a row is wrong.
    """
    rows, remedy = [], "get it as described in data/AVE/README.md"
    for where, (category, clip_id, _, start, end) in read_rows(path, "category&id&quality&start&end", "&", remedy):
        for seconds in (start, end):
            whole_number(seconds, where)
        rows.append((check_name(clip_id, where), category))
    if repeats := len(rows) - len({clip_id for clip_id, _ in rows}):
        warn_once(f"{path}: {repeats} row(s) name a video that another row names too; all are used")
    return rows
