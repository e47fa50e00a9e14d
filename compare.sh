#!/usr/bin/env bash
# Compare DGL with other methods on one dataset: train methods x alphas x seeds, then write a table and figures with
# means and with the uncertainty of differences. Runs differ in the method only: data, encoders, initial weights,
# schedule and evaluation are the same.
# Hardware:  as the dataset's own script.
# Time:      that of one run, times methods, alphas and seeds. The demo, 18 runs, took 3 to 4 minutes on two CPU cores
#            with jobs=2.
# Writes:    $out/comparison.md, .csv, .png and curves.png; with several alphas alpha.png; with --log_suppression
#            suppression.png; and a folder per run, such as $out/dgl-alpha4-seed0.
# Finished runs are kept and interrupted runs resume. To resume, or after adding a seed, run the same command again.
# The best epoch is chosen on held-out training clips, a tenth of them (AV-MNIST: a fifth). Variables set the methods,
# alphas and seeds. Flags go to every training run; a flag of one method goes only to runs of that method:
#   dataset=CREMAD val_ratio=0 bash compare.sh                  # the paper's protocol
#   bash compare.sh                                             # the demo
#   dataset=CREMAD seeds=0 alphas='1 2 4 8' bash compare.sh --epochs 50
#   methods='dgl baselines' jobs=4 bash compare.sh              # four runs at a time
#   methods=all plan=1 bash compare.sh >runs.txt                # one command per line, for a cluster
set -euo pipefail
CDPATH= cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages >&2

dataset=${dataset:-demo}                               # demo, or a name that --dataset takes
# values of --method, or the groups unimodal, baselines, ablations, all
methods=${methods:-"unimodal joint joint_uni ogm_ge dgl"}
alphas=${alphas:-}                                     # for dgl and its ablations (default: as the dataset's script)
seeds=${seeds:-"0 1 2"}
val_ratio=${val_ratio:-}                               # share of training clips held out to choose the best epoch;
                                                       # 0: choose it on the test clips, as in the paper, which raises
                                                       # the accuracies of all methods
reference=${reference:-}                               # method to compare with (default: joint_uni, if it ran)
out=${out:-ckpt/compare/$dataset}
jobs=${jobs:-1}                                        # runs at a time, one per GPU; on the CPU, they share the cores
plan=${plan:-}                                         # 1: print the commands of the runs, and start none

case $dataset in
  KineticSound | kinect400) alphas=${alphas:-3} ;;
  VGGSound) alphas=${alphas:-2} ;;
  *) alphas=${alphas:-4} ;;
esac
case $dataset in
  demo)
    bash data/demo/make_demo.sh hard >&2
    root=train_test_data/demo-hard/CREMA-D
    flags=(--dataset CREMAD --audio_path "$root/AudioWAV" --visual_path "$root" --split_path "$root"
      --image_size 64 --batch_size 8 --epochs 5 --learning_rate 0.002 --lr_decay_step '[4]')
    ;;
  AVMNIST) # few training clips, because with all of them every method is near 100 %
    lists=train_test_data/AV-MNIST/takes6
    "$PYTHON" data/AVMNIST/make_pairs.py --takes 6 --split_path "$lists" >&2
    flags=(--dataset AVMNIST --split_path "$lists" --val_ratio 0.2 --num_frame 1 --image_size 32
      --batch_size 16 --epochs 8 --learning_rate 0.01 --lr_decay_step '[6]')
    ;;
  MOSI)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}         # the networks are small: more threads are slower
    flags=(--dataset MOSI --epochs 30 --batch_size 64 --learning_rate 0.002 --lr_decay_step '[20]')
    ;;
  *)
    flags=(--dataset "$dataset" --epochs 100 --batch_size 64 --learning_rate 0.002 --lr_decay_step '[70]')
    ;;
esac

run "$PYTHON" -m analysis.runner --out "$out" --methods $methods --alphas $alphas --seeds $seeds \
  --jobs "$jobs" ${plan:+--plan} -- --val_ratio 0.1 "${flags[@]}" ${val_ratio:+--val_ratio "$val_ratio"} "$@"
[ "$plan" ] || "$PYTHON" -m analysis.comparison "$out" ${reference:+--reference "$reference"}
[ "$plan" ] || [[ " $* " != *" --log_suppression "* ]] || "$PYTHON" -m analysis.suppression "$out"
