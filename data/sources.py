"""What each output was made of, so that a clip whose file has changed since is extracted anew."""

import csv
import os

from utils.files import write_csv

NAME = ".sources.csv"  # in the folder of the outputs
HEADER = ("output", "bytes", "changed", "damage")


class Sources:
    """A record of the outputs in a folder: size and time of change (ns) of the file that each was made of.

    `damage` is why that file was no whole one, if it was taken nevertheless. Lines are added as clips end, so that a
    run that is killed leaves no more than one in doubt; `finish` writes them in order.
    """

    def __init__(self, target):
        self.target, self.path, self.rows = target, target / NAME, {}
        try:
            with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                self.rows = {row[0]: row[1:] for row in csv.reader(file) if len(row) == len(HEADER)}
        except (OSError, csv.Error):
            pass  # of another version, or none
        self.rows.pop(HEADER[0], None)
        self.file = None

    def name(self, output):
        return str(output.relative_to(self.target))

    def still_holds(self, video, output):
        """Whether `output` was made of the `video` as it is now. One without a record was, if it is the newer one."""
        try:
            made, state = os.stat(output).st_mtime_ns, os.stat(video)
        except OSError:
            return False
        recorded = self.rows.get(self.name(output))
        if recorded is None:
            self.rows[self.name(output)] = [str(state.st_size), str(state.st_mtime_ns), ""]
            return made >= state.st_mtime_ns
        return recorded[:2] == [str(state.st_size), str(state.st_mtime_ns)]

    def damage(self, output):
        """Why the file that `output` was made of was no whole one; "" if it was."""
        return self.rows.get(self.name(output), ("", "", ""))[2]

    def add(self, output, state, damage=""):
        """Record that `output` was made of a file whose os.stat was `state`."""
        row = self.rows[self.name(output)] = [str(state.st_size), str(state.st_mtime_ns), damage]
        if not self.file:
            self.file = open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        csv.writer(self.file, lineterminator="\n").writerow([self.name(output), *row])
        self.file.flush()

    def finish(self):
        """Write the record anew, in order, of the outputs that are there; none of nothing."""
        if self.file:
            self.file.close()
        there = {name: row for name, row in sorted(self.rows.items()) if (self.target / name).exists()}
        if there:
            write_csv(self.path, [HEADER, *([name, *row] for name, row in there.items())])
        else:
            self.path.unlink(missing_ok=True)
