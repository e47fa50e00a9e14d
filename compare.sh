#!/usr/bin/env bash
# DGL beside its baselines: methods x alphas x seeds on one dataset, then a table and pictures of mean and deviation.
# Everything but the training rule is the same: data, encoders, initial weights, schedule, evaluation.
# Hardware:  as the dataset's own script.
# Time:      the demo's 15 runs: 42 minutes on 2 CPU cores that had other work beside it. Others: not measured.
# Writes:    $out/comparison.md, .csv, .png, curves.png and, with several alphas, alpha.png; a folder per run beside
#            them.
# Finished runs are not repeated, others go on where they stopped: interrupt it, or add a seed, and start it again.
# Flags given here go to every training run; method, alpha and seed are those of the lists:
#   bash compare.sh                                             # the demo
#   dataset=CREMAD seeds=0 alphas='1 2 4 8' bash compare.sh --epochs 50
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages

dataset=${dataset:-demo}                               # demo, or a name that --dataset takes
methods=${methods:-"audio visual joint ogm_ge dgl"}    # of those that --method takes, or all
alphas=${alphas:-4}                                    # for the methods that have it, dgl and its ablations
seeds=${seeds:-"0 1 2"}
reference=${reference:-}                               # what others are compared with; joint_uni where it is there
out=${out:-ckpt/compare/$dataset}

if [ "$dataset" = demo ]; then
  bash data/demo/make_demo.sh hard
  root=train_test_data/demo-hard/CREMA-D
  flags=(--dataset CREMAD --audio_path "$root/AudioWAV" --visual_path "$root" --split_path "$root"
    --image_size 64 --batch_size 8 --epochs 5 --learning_rate 0.002 --lr_decay_step '[4]')
else
  flags=(--dataset "$dataset" --epochs 100 --batch_size 64 --learning_rate 0.002 --lr_decay_step '[70]')
fi

best_is_last='
import json, sys
result = json.load(open(sys.argv[1]))
sys.exit(result["best"]["epoch"] != result["last"]["epoch"])'

compare() { # name of the run, flags of its method
  local run=$out/$1 command
  shift
  command="main_dgl.py --train ${flags[*]} $*"
  if [ -e "$run/command" ] && [ "$(cat "$run/command")" != "$command" ]; then
    echo "error: $run: holds a run with other flags; remove it, or choose another folder with out=" >&2
    exit 2
  fi
  if [ ! -e "$run/result.json" ]; then
    echo "== $run"
    mkdir -p "$run"
    echo "$command" >"$run/command"
    run "$PYTHON" main_dgl.py --train "${flags[@]}" "$@" --ckpt_path "$run"
  fi
  if [ ! -e "$run/best.json" ] || [ ! -e "$run/predictions.csv" ]; then
    run "$PYTHON" valid.py --ckpt_path "$run/best.pth" --linear_probe --json "$run/best.json" \
      --predictions "$run/predictions.csv" >/dev/null
  fi
  if [ ! -e "$run/last.json" ] && "$PYTHON" - "$run/result.json" <<<"$best_is_last"; then
    cp "$run/best.json" "$run/last.json"
  elif [ ! -e "$run/last.json" ]; then
    run "$PYTHON" valid.py --ckpt_path "$run/last.pth" --linear_probe --json "$run/last.json" >/dev/null
  fi
}

flags+=("$@")
plan=$("$PYTHON" -m utils.results.plan --out "$out" --methods $methods --alphas $alphas --seeds $seeds)
while read -r run; do
  eval "compare $run" </dev/null # quoted for the shell
done <<<"$plan"
"$PYTHON" -m utils.results.comparison "$out" ${reference:+--reference "$reference"}
