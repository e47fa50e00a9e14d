#!/usr/bin/env bash
# DGL on Kinetics-400: train, then validate the best epoch.
# Hardware:  meant for one GPU; runs on CPU cores too, slowly.
# Time:      not measured.
# Accuracy:  not reported by the authors, not measured; alpha is that of Kinetics-Sounds.
# Data:      train_test_data/kinect400, see data/kinect400/README.md.
# Edit a setting below, or set it as an environment variable for one run. Flags of main_dgl.py override settings. Every
# combination of settings has its own folder, such as ckpt/kinect400/dgl-alpha3-seed0. The same command again
# resumes an interrupted run, and validates a finished one:
#   alpha=5 bash kinect400_dgl.sh
#   bash kinect400_dgl.sh --fusion_method gated --val_ratio 0.1
#   processes=4 bash kinect400_dgl.sh                # on 4 GPUs; on Slurm: docs/clusters.md
alpha=${alpha:-3}                           # weight of the unimodal losses
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
train_and_validate --dataset kinect400 --num_frame 3 "$@"
