# Sourced by the scripts. PYTHON is that of the project's .venv where there is one, else the machine's.
# `make_environment` makes .venv and installs requirements.txt into it, and other such files that are named behind it;
# again only when one of them has changed.
machine_python=$(command -v python3 || command -v python || true)
PYTHON=.venv/bin/python
[ -x "$PYTHON" ] || PYTHON=$machine_python

# Makes the environment or brings it up to date, unless the Python at hand is another one and has the packages.
ensure_packages() {
  local packages
  packages="torchvision torchaudio librosa soundfile cv2 imageio_ffmpeg pebble tqdm tensorboard sklearn matplotlib"
  [ ! -d .venv ] && "$PYTHON" -c "
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in '$packages'.split()))" || make_environment
}

make_environment() {
  local file stale=
  set -- requirements.txt "$@"
  for file in "$@"; do cmp -s "$file" ".venv/$file" || stale=1; done
  [ "$stale" ] || return 0
  if ! "${machine_python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: Python 3.10 or newer is needed; install it and put it on the PATH as python3" >&2
    exit 2
  fi
  echo "== setting up .venv (several GB on Linux, a few minutes)"
  "$machine_python" -m venv .venv
  PYTHON=.venv/bin/python
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "${@/#/--requirement=}"
  cp "$@" .venv/
}
