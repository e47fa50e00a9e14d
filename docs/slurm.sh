#!/usr/bin/env bash
#SBATCH --job-name=dgl
#SBATCH --time=08:00:00
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# A job for Slurm, submitted from the project's folder: sbatch docs/slurm.sh [flags of main_dgl.py]
# Five minutes before the job's time is over, SIGUSR1 ends the run and the job is queued again. The same command then
# resumes from the end of the last epoch; the interrupted epoch starts again.
# Edit the script that the job runs, or set values before sbatch: alpha=5 sbatch docs/slurm.sh
set -uo pipefail
CDPATH= cd "${SLURM_SUBMIT_DIR:-.}"
if [ ! -e utils/environment.sh ]; then
  echo "error: $PWD: not the project's folder; submit the job from there" >&2
  exit 2
fi
source utils/environment.sh
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then # a job that is queued again resumes
  for flag; do
    shift
    [ "$flag" = --overwrite ] || set -- "$@" "$flag"
  done
fi
run bash "${script:-cramed_dgl.sh}" "$@"
status=$?
if [ "$status" -eq 138 ]; then # 128 + SIGUSR1
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
