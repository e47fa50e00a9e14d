#!/usr/bin/env bash
# DGL beside its baselines: methods x alphas x seeds on one dataset, then a table and pictures: means, and how sure the
# differences are. Everything but the training rule is the same: data, encoders, initial weights, schedule, evaluation.
# Hardware:  as the dataset's own script.
# Time:      methods x seeds times that of one run; a whole comparison has not been measured.
# Writes:    $out/comparison.md, .csv, .png, curves.png and, with several alphas, alpha.png; a folder per run beside
#            them.
# Finished runs are not repeated, others go on where they stopped: interrupt it, or add a seed, and start it again.
# The best epoch is chosen on a tenth of the training clips, held out (AV-MNIST: a fifth). Flags given here go to every
# training run, those of one method to its runs alone; method, alpha and seed are those of the lists:
#   bash compare.sh                                             # the demo
#   dataset=CREMAD seeds=0 alphas='1 2 4 8' bash compare.sh --epochs 50
#   methods='dgl baselines' jobs=4 bash compare.sh              # four runs at a time
#   methods=all plan=1 bash compare.sh >runs.txt                # a line a run, for a cluster; then without plan=1
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages >&2

dataset=${dataset:-demo}                               # demo, or a name that --dataset takes
# those that --method takes, or unimodal, baselines, ablations, all
methods=${methods:-"unimodal joint joint_uni ogm_ge dgl"}
alphas=${alphas:-4}                                    # for the methods that have it, dgl and its ablations
seeds=${seeds:-"0 1 2"}
reference=${reference:-}                               # what others are compared with; joint_uni where it is there
out=${out:-ckpt/compare/$dataset}
jobs=${jobs:-1}                                        # runs at a time, one per GPU, or with the cores divided
plan=${plan:-}                                         # 1: print the runs, one command a line, and make none

case $dataset in
  demo)
    bash data/demo/make_demo.sh hard >&2
    root=train_test_data/demo-hard/CREMA-D
    flags=(--dataset CREMAD --audio_path "$root/AudioWAV" --visual_path "$root" --split_path "$root"
      --image_size 64 --batch_size 8 --epochs 5 --learning_rate 0.002 --lr_decay_step '[4]')
    ;;
  AVMNIST) # little to train on: with all of it every method is near its ceiling
    lists=train_test_data/AV-MNIST/takes6
    "$PYTHON" data/AVMNIST/make_pairs.py --takes 6 --split_path "$lists" >&2
    flags=(--dataset AVMNIST --split_path "$lists" --val_ratio 0.2 --num_frame 1 --image_size 32
      --batch_size 16 --epochs 8 --learning_rate 0.01 --lr_decay_step '[6]')
    ;;
  *)
    flags=(--dataset "$dataset" --epochs 100 --batch_size 64 --learning_rate 0.002 --lr_decay_step '[70]')
    ;;
esac

run "$PYTHON" -m utils.results.runner --out "$out" --methods $methods --alphas $alphas --seeds $seeds \
  --jobs "$jobs" ${plan:+--plan} -- --val_ratio 0.1 "${flags[@]}" "$@"
[ "$plan" ] || "$PYTHON" -m utils.results.comparison "$out" ${reference:+--reference "$reference"}
