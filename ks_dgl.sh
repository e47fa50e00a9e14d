#!/usr/bin/env bash
# DGL on Kinetics-Sounds: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too, slowly.
# Time:      not measured.
# Accuracy:  the authors note 75.10 and 76.28 (alpha 3, two runs) and 74.78 (alpha 2) for their own script.
# Data:      train_test_data/kinect_sound, see data/KineticSound/README.md.
# Flags given here are added behind those below and win; a second setting takes a folder of its own:
#   bash ks_dgl.sh --alpha 5 --ckpt_path ckpt/ks-alpha5
#   bash ks_dgl.sh --resume          # goes on with an interrupted run
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages

flags=(--dataset KineticSound --modality full --modulation Normal --fusion_method concat --alpha 3 --num_frame 3
  --epochs 100 --batch_size 64 --optimizer sgd --learning_rate 0.002 --lr_decay_step '[70]'
  --ckpt_path ckpt/ks "$@")
"$PYTHON" main_dgl.py --train "${flags[@]}"
"$PYTHON" main_dgl.py "${flags[@]}" # without --train: validates best.pth
