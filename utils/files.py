"""Files that are written whole or not at all."""

import json
import os

from utils.errors import InputError


def write_text(path, text):
    """Replace the file at `path` by `text`, whole or not at all.

    Raises:
        InputError: it cannot be written; what was there is left as it was.
    """
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        if os.path.exists(partial):
            os.remove(partial)
        raise InputError(f"{path}: cannot be written ({error.strerror}); free space or choose another path") from None


def write_json(path, values):
    """Write `values`, a dict of plain values, to `path` as JSON, as `write_text` does."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
