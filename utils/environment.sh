# Functions of the scripts, which source this file from the project's folder.
# Sets PYTHON: the Python of the project's .venv if there is one, else the machine's.

fail() {
  echo "error: $1" >&2
  exit 2
}

if [ -e .venv ]; then
  PYTHON=.venv/bin/python
else
  PYTHON=$(command -v python3 || command -v python || echo false)
fi
reason=$("$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>&1) || {
  [ ! -e .venv ] || [ -z "$reason" ] ||
    fail ".venv: its Python cannot be started (${reason##*: }); make it executable, or run rm -r .venv and start again"
  fail "Python 3.10 or newer is needed; install it and put it on the PATH as python3"
}

# Make sure that the packages of requirements.txt and of the files given as arguments are installed. If the current
# Python does not have them, install them into .venv, which is created, or updated if one of the files has changed.
ensure_packages() {
  local file stale= modules
  modules="torchvision torchaudio librosa soundfile cv2 av pebble filelock tqdm tensorboard sklearn matplotlib"
  set -- requirements.txt "$@"
  if [ -e .venv ]; then
    for file in "$@"; do cmp -s "$file" ".venv/$file" || stale=1; done
    [ "$stale" ] || return 0
  else
    [ $# -eq 1 ] || modules+=" pytest xdist ruff importlinter imageio_ffmpeg"
    ! "$PYTHON" -c "
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in '$modules'.split()))" || return 0
    trap 'rm -rf .venv' EXIT # an interrupted setup leaves no incomplete .venv
  fi
  echo "== setting up .venv (several GB on Linux, a few minutes)"
  { [ -e .venv ] || "$PYTHON" -m venv .venv; } &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${@/#/--requirement=}" && cp "$@" .venv/ ||
    fail "the packages could not be installed, see above; fix that and run the script again"
  trap - EXIT
  PYTHON=.venv/bin/python
}

# Run a command until it ends, and forward to it the signals with which a terminal or a cluster ends a job.
run() {
  local child status signal received=
  "$@" </dev/null & # a background process ignores Ctrl-C, so it gets SIGTERM instead
  child=$!
  for signal in HUP INT USR1 TERM; do
    trap "received=$((128 + $(kill -l "$signal"))); kill -TERM $child 2>/dev/null || true" "$signal"
  done
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break # if it is still running, a signal has interrupted wait
  done
  trap - TERM HUP USR1 INT
  return "${received:-$status}"
}

# Train in `processes` processes and validate the best epoch. Settings are the variables at the top of a dataset's
# script; the arguments are further flags of main_dgl.py.
train_and_validate() {
  set -- --modulation Normal --fusion_method concat --alpha "$alpha" --learning_rate "$learning_rate" \
    --lr_decay_step "$lr_decay_step" --epochs "$epochs" --batch_size "$batch_size" --random_seed "$seed" \
    --use_tensorboard "$@"
  [[ "${processes:-1}" =~ ^[1-9][0-9]*$ ]] || fail "processes=$processes: not a whole number of at least 1; change it"
  local launch=("$PYTHON")
  [ "${processes:-1}" -eq 1 ] || launch+=(-m engine.launch --standalone "--nproc_per_node=$processes")
  run "${launch[@]}" main_dgl.py --train "$@"
  run "$PYTHON" main_dgl.py "$@" # without --train: validates best.pth
}
