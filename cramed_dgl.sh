#!/usr/bin/env bash
# DGL on CREMA-D: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too.
# Time:      not measured on these clips. One H200 and 16 cores train on 1,090 clips of this size per second: about 6 s
#            an epoch. Two CPU cores: about 24 minutes an epoch, two days in all, estimated from 0.22 s per clip.
# Accuracy:  the paper reports 77.48 (audio 63.12, visual 69.11; alpha 4). Ours: not measured.
# Data:      train_test_data/CREMA-D, see data/CREMAD/README.md.
# Edit a setting below, or set it as an environment variable for one run. Flags of main_dgl.py override settings. Every
# combination of settings has its own folder, such as ckpt/cremad/dgl-alpha4-seed0. The same command again
# resumes an interrupted run, and validates a finished one:
#   alpha=5 bash cramed_dgl.sh
#   bash cramed_dgl.sh --fusion_method gated --val_ratio 0.1
#   processes=4 bash cramed_dgl.sh                      # on 4 GPUs; on Slurm: docs/clusters.md
alpha=${alpha:-4}                           # weight of the unimodal losses
learning_rate=${learning_rate:-0.002}
lr_decay_step=${lr_decay_step:-70}          # epochs, counted from 0
epochs=${epochs:-100}
batch_size=${batch_size:-64}
seed=${seed:-0}
processes=${processes:-1}                   # one per GPU

set -euo pipefail
CDPATH= cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages
train_and_validate --dataset CREMAD --num_frame 1 "$@"
