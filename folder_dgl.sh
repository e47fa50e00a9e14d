#!/usr/bin/env bash
# DGL on your own videos: extract audio and frames, train, then validate the best epoch.
# Hardware:  CPU cores or one GPU.
# Time:      2 to 3 minutes on two CPU cores for 30 videos of 1 to 2 s.
# Data:      root/<class>/<video>, a fifth of each class is held out for testing; or root/train/<class>/<video> and
#            root/test/<class>/<video>; see data/Folder/README.md.
# Edit a setting below, or set it as an environment variable for one run. Flags of main_dgl.py override settings. Every
# combination of settings has its own folder, such as ckpt/folder/dgl-alpha4-seed0. The same command again resumes an
# interrupted run, and validates a finished one; after adding videos, add --overwrite to train again:
#   root=~/videos bash folder_dgl.sh
#   root=~/videos bash folder_dgl.sh --audio_seconds 5 --image_size 64
# Classify a new video with the newest run below ckpt/, or with another run:
#   python valid.py --video new.mp4 [--ckpt_path ckpt/folder/dgl-alpha4-seed0]
root=${root:-train_test_data/my_videos}
alpha=${alpha:-4}                           # weight of the unimodal losses
learning_rate=${learning_rate:-0.002}
lr_decay_step=${lr_decay_step:-20}          # epochs, counted from 0
epochs=${epochs:-30}
batch_size=${batch_size:-8}                 # 64 for thousands of videos
seed=${seed:-0}
processes=${processes:-1}                   # one per GPU
extract=${extract:-}                        # flags of data/Folder/extract.py, such as "--keep_damaged --fps 5"

set -euo pipefail
CDPATH= cd "$(dirname "$0")"
source utils/environment.sh
ensure_packages
run "$PYTHON" data/Folder/extract.py --root "$root" $extract
train_and_validate --dataset Folder --root "$root" "$@"
