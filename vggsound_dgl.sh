#!/usr/bin/env bash
# DGL on VGGSound: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too, slowly.
# Time:      not measured.
# Accuracy:  none noted by the authors, none measured.
# Data:      train_test_data/vggsound and data/VGGSound/vggsound.csv, see data/VGGSound/README.md.
# Flags given here are added behind those below and win; a second setting takes a folder of its own:
#   bash vggsound_dgl.sh --alpha 5 --ckpt_path ckpt/vggsound-alpha5
#   bash vggsound_dgl.sh --resume          # goes on with an interrupted run
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages

flags=(--dataset VGGSound --modality full --modulation Normal --fusion_method concat --alpha 2 --num_frame 3
  --epochs 100 --batch_size 64 --optimizer sgd --learning_rate 0.002 --lr_decay_step '[70]'
  --ckpt_path ckpt/vggsound "$@")
"$PYTHON" main_dgl.py --train "${flags[@]}"
"$PYTHON" main_dgl.py "${flags[@]}" # without --train: validates best.pth
