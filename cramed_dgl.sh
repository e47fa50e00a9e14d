#!/usr/bin/env bash
# DGL on CREMA-D: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too.
# Time:      not measured on a GPU. Two CPU cores: about 24 minutes an epoch, two days in all, reckoned from 0.22 s
#            a clip for forward and backward of both encoders.
# Accuracy:  the authors note 77.48 (alpha 4) and 78.12 (alpha 5) for their own script.
# Data:      train_test_data/CREMA-D, see data/CREMAD/README.md.
# Flags given here are added behind those below and win; a second setting takes a folder of its own:
#   bash cramed_dgl.sh --alpha 5 --ckpt_path ckpt/cremad-alpha5
#   bash cramed_dgl.sh --resume          # goes on with an interrupted run
set -euo pipefail
cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages

flags=(--dataset CREMAD --modality full --modulation Normal --fusion_method concat --alpha 4
  --epochs 100 --batch_size 64 --optimizer sgd --learning_rate 0.002 --lr_decay_step '[70]'
  --ckpt_path ckpt/cremad "$@")
"$PYTHON" main_dgl.py --train "${flags[@]}"
"$PYTHON" main_dgl.py "${flags[@]}" # without --train: validates best.pth
