"""Every script comes by here first, also under a Python that is too old for the rest: this file runs under any.

It also clears the environment of what is not meant for the scripts, before packages read it.
"""

import os
import sys
import tempfile

if sys.version_info < (3, 10):
    sys.stderr.write(
        "error: Python 3.10 or newer is needed, this is %d.%d; start it with another\n" % sys.version_info[:2]
    )
    sys.exit(2)

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def forget_half_a_launcher():
    """Unset the variables of torchrun unless all are there: some clusters set a few for every process."""
    if not all(name in os.environ for name in LAUNCHER):
        for name in (*LAUNCHER, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def is_writable(folder):
    """Return True if a folder, or the nearest one above it that exists, can be written."""
    while not os.path.exists(folder):
        folder = os.path.dirname(folder) or "."
    return os.access(folder, os.W_OK)


def give_packages_a_folder():
    """Let packages keep compiled code in a folder of this user's where the home folder cannot be written."""
    home = os.path.expanduser("~")  # "~" for a user without one
    if os.name == "posix" and not (os.path.isabs(home) and is_writable(os.path.join(home, ".cache"))):
        folder = os.path.join(tempfile.gettempdir(), "dgl-%d" % os.getuid())
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if os.stat(folder).st_uid != os.getuid():  # of another user, who could put code there
                folder = tempfile.mkdtemp()
        except OSError:  # no folder at all can be written
            return
        for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
            os.environ.setdefault(name, os.path.join(folder, name.lower()))


forget_half_a_launcher()
os.environ.update({"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull})  # figures look the same everywhere
os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # librosa imports joblib, which otherwise warns where /dev/shm is read-only
give_packages_a_folder()
