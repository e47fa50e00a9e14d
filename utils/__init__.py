"""Check the version of Python and prepare the environment, before any other package is imported.

Every script imports this file first. It runs under any version of Python, so that an old version gets a clear message.
"""

import os
import sys
import tempfile

if sys.version_info < (3, 10):
    sys.stderr.write(
        "error: Python 3.10 or newer is needed, this is %d.%d; start the script with a newer one\n"
        % sys.version_info[:2]
    )
    sys.exit(2)

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def unset_incomplete_launcher():
    """Unset the variables of torchrun unless all of them are set: some clusters set a few for every process."""
    if not all(name in os.environ for name in LAUNCHER):
        for name in (*LAUNCHER, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def is_writable(folder):
    """Return True if a folder can be written to; if it does not exist, its nearest existing parent decides."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder) or "."
    return os.access(folder, os.W_OK)


def give_packages_a_folder():
    """Let packages keep compiled code in a temporary folder of this user if the home folder cannot be written to."""
    home = os.path.expanduser("~")  # "~" for a user without one
    if os.name == "posix" and not (os.path.isabs(home) and is_writable(os.path.join(home, ".cache"))):
        folder = os.path.join(tempfile.gettempdir(), "dgl-%d" % os.getuid())
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if os.stat(folder).st_uid != os.getuid():  # it belongs to another user, who could put code there
                folder = tempfile.mkdtemp()
        except OSError:  # no folder can be written to
            return
        for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
            os.environ.setdefault(name, os.path.join(folder, name.lower()))


unset_incomplete_launcher()
os.environ.update({"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull})  # figures look the same everywhere
os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # otherwise joblib, which librosa imports, warns if /dev/shm is read-only
give_packages_a_folder()
