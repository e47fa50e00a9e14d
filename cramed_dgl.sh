#!/usr/bin/env bash
# DGL on CREMA-D: train, then validate the best epoch.
# Hardware:  one GPU with 12 GB; on CPU cores it runs, but takes days.
# Time:      not measured on a GPU; two CPU cores train about 4 clips a second at 224 x 224, 28 minutes an epoch.
# Accuracy:  the authors note 77.48 (alpha 4) and 78.12 (alpha 5) for their own script.
# Data:      train_test_data/CREMA-D, see data/CREMAD/README.md.
# Flags given here are added behind those below and win: bash cramed_dgl.sh --alpha 5
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh

flags=(--dataset CREMAD --modality full --modulation Normal --fusion_method concat --alpha 4
  --epochs 100 --batch_size 64 --optimizer sgd --learning_rate 0.002 --lr_decay_step '[70]'
  --ckpt_path ckpt/cremad "$@")
"$PYTHON" main_dgl.py --train "${flags[@]}"
"$PYTHON" main_dgl.py "${flags[@]}" # without --train: validates best.pth
