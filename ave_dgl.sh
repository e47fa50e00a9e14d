#!/usr/bin/env bash
# DGL on AVE: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too, slowly.
# Time:      not measured.
# Accuracy:  none noted by the authors, none measured; alpha is CREMA-D's.
# Data:      train_test_data/AVE_Dataset, see data/AVE/README.md.
# Flags given here are added behind those below and win; a second setting takes a folder of its own:
#   bash ave_dgl.sh --alpha 5 --ckpt_path ckpt/ave-alpha5
#   bash ave_dgl.sh --resume          # goes on with an interrupted run
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages

flags=(--dataset AVE --modality full --modulation Normal --fusion_method concat --alpha 4 --num_frame 1
  --epochs 100 --batch_size 64 --optimizer sgd --learning_rate 0.002 --lr_decay_step '[70]'
  --ckpt_path ckpt/ave "$@")
"$PYTHON" main_dgl.py --train "${flags[@]}"
"$PYTHON" main_dgl.py "${flags[@]}" # without --train: validates best.pth
