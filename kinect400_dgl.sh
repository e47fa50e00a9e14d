#!/usr/bin/env bash
# DGL on Kinetics-400: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too, slowly.
# Time:      not measured.
# Accuracy:  none noted by the authors, none measured; alpha is that of Kinetics-Sounds.
# Data:      train_test_data/kinect400, see data/kinect400/README.md.
# Flags given here are added behind those below and win; a second setting takes a folder of its own:
#   bash kinect400_dgl.sh --alpha 5 --ckpt_path ckpt/kinect400-alpha5
#   bash kinect400_dgl.sh --resume          # goes on with an interrupted run
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages

flags=(--dataset kinect400 --modality full --modulation Normal --fusion_method concat --alpha 3 --num_frame 3
  --epochs 100 --batch_size 64 --optimizer sgd --learning_rate 0.002 --lr_decay_step '[70]'
  --ckpt_path ckpt/kinect400 "$@")
"$PYTHON" main_dgl.py --train "${flags[@]}"
"$PYTHON" main_dgl.py "${flags[@]}" # without --train: validates best.pth
