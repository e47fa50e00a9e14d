"""Scripts in processes of their own that are spared the seconds in which PyTorch and other packages are imported.

A server, one for each process of the tests, has imported the packages that the scripts import, and nothing of the
project. For every script it creates a fork, which from there on is what `python script` is: arguments, folder,
environment, files, signals, output and exit status are its own. What imports are for is tested by real interpreters.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PACKAGES = "torch.utils.data torch.distributed torch.nn.parallel torchaudio.functional torchvision.models.resnet "
PACKAGES += "torchvision.transforms.v2 librosa.core.audio librosa.util.utils soundfile soxr cv2 av PIL.Image "
PACKAGES += "pebble tqdm filelock scipy.signal scipy.stats sklearn.linear_model sklearn.metrics sklearn.pipeline "
PACKAGES += "sklearn.cluster matplotlib.figure torch.utils.tensorboard torch.utils.tensorboard.summary pytest"
PYTHON = "DGL_TESTS_PYTHON"  # in a script's environment: the interpreter that it starts others with
SMALL = "DGL_TESTS_SMALL"  # in a script's environment: it has small encoders and draws no figures of a run
ROOT = Path(__file__).resolve().parents[1]
HERE = sys.platform == "linux"  # elsewhere scripts are started as usual


@functools.cache
def server():
    """Start this process's server, which ends with it. Returns the name of its socket, and the server."""
    name = f"dgl-tests-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        command = [sys.executable, __file__, "serve", str(listener.fileno())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return name, subprocess.Popen(command, start_new_session=True, pass_fds=[listener.fileno()], **pipes)


def interpreter():
    """Return the command that stands for the interpreter in a shell script."""
    return [sys.executable, *(["-SE", __file__, "ask", server()[0]] if HERE else [])]


def start(command, folder=ROOT, environment=os.environ, output=None, errors=None):
    """Start `python command` in a session of its own, with these files for its output. Returns a Fork or Popen."""
    command = list(map(str, command))
    with open(os.devnull, "w") as nowhere:
        output, errors = output or nowhere, errors or nowhere
        if HERE:
            return Fork(server()[0], command, folder, environment, (output.fileno(), errors.fileno()))
        files = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors, "start_new_session": True}
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **files)


class Fork:
    """A script that runs, with a part of what subprocess.Popen has; it ends with the process that has started it."""

    def __init__(self, name, command, folder, environment, descriptors):
        self.connection, self.returncode = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), None
        self.connection.connect(f"\0{name}")
        request = json.dumps([command, str(folder), dict(environment)])
        socket.send_fds(self.connection, [request.encode()], descriptors)
        self.pid = int(self.connection.recv(32))

    def wait(self):
        if self.returncode is None:
            self.returncode = int(self.connection.recv(32))
            self.connection.close()
        return self.returncode

    def poll(self):
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def send_signal(self, number):
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)


def ask(name, command):
    """Run `python command` in a fork with the files of this process, pass signals to it, and end as it ends."""
    command = command[1:] if command[0] == "-u" else command
    fork = Fork(name, command, os.getcwd(), os.environ, (0, 1, 2))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: fork.send_signal(number))
    status = fork.wait()
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(listener):
    """Fork for every client until the process of the tests has ended. It returns in the forks, each with a script."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for `report`
    while True:
        if 0 in select.select([listener, 0], [], [])[0]:
            sys.exit()
        connection, _ = listener.accept()
        if os.fork() == 0:
            return report(connection)
        connection.close()


def report(connection):
    """Fork once more and report that process's number and exit status. It returns in that process, with a script."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, *_ = socket.recv_fds(connection, 2**20, 3)
    pid = os.fork()
    if pid == 0:
        connection.close()
        return become(*json.loads(message), files)
    connection.send(str(pid).encode())
    if connection in select.select([os.pidfd_open(pid), connection], [], [])[0]:  # the client has ended
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def become(command, folder, environment, files):
    """Turn this process into the script's, in a session of its own."""
    os.setsid()
    files = files if len(files) == 3 else [os.open(os.devnull, os.O_RDONLY), *files]
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = environment.get(PYTHON, sys.executable)
    sys.argv[:] = command


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3:])
    for package in PACKAGES.split():
        importlib.import_module(package)
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[2])))
    if SMALL in os.environ:
        sys.path[0] = str(ROOT)
        from pytest import MonkeyPatch

        from tests.conftest import make_small

        make_small(MonkeyPatch())
    if sys.argv[0] == "-m":
        sys.path[0] = os.getcwd()
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
