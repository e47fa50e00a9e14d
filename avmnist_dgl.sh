#!/usr/bin/env bash
# DGL on AV-MNIST, spoken and handwritten digits: train, then validate the best epoch, chosen on held-out clips.
# Hardware:  two CPU cores are enough.
# Time:      15 minutes from raw files on two CPU cores, 2.3 minutes per epoch.
# Accuracy:  one run: on the test clips fused 1.000, audio 0.993, visual 0.513; on the 270 held-out clips fused 0.996.
# Data:      train_test_data/AV-MNIST, see data/AVMNIST/README.md.
# Edit a setting below, or set it as an environment variable for one run. Flags of main_dgl.py override settings. Every
# combination of settings has its own folder, such as ckpt/avmnist/dgl-alpha4-seed0. The same command again
# resumes an interrupted run, and validates a finished one:
#   alpha=2 bash avmnist_dgl.sh
#   bash avmnist_dgl.sh --fusion_method gated
alpha=${alpha:-4}                           # weight of the unimodal losses
learning_rate=${learning_rate:-0.01}
lr_decay_step=${lr_decay_step:-4}           # epochs, counted from 0
epochs=${epochs:-6}
batch_size=${batch_size:-32}
seed=${seed:-0}
processes=${processes:-1}                   # one per GPU

set -euo pipefail
CDPATH= cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages
train_and_validate --dataset AVMNIST --num_frame 1 --image_size 32 --val_ratio 0.1 "$@"
