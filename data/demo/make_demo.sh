#!/usr/bin/env bash
# Make the demo's clips, with frames and lists: 240 clips under train_test_data/demo/CREMA-D, half a minute.
# `make_demo.sh hard` makes harder clips, for comparisons, under train_test_data/demo-hard/CREMA-D.
# Files that exist are kept.
set -euo pipefail
CDPATH= cd "$(dirname "$0")/../.."
source utils/environment.sh
ensure_packages
grade=${1:-easy}
root=train_test_data/demo/CREMA-D
[ "$grade" = easy ] || root=train_test_data/demo-$grade/CREMA-D

echo "== make clips in CREMA-D's raw form"
"$PYTHON" data/demo/make_clips.py --grade "$grade" --root "$root"
echo "== extract frames"
"$PYTHON" data/CREMAD/video_preprocessing.py --root "$root"
echo "== split"
"$PYTHON" data/CREMAD/make_split.py --root "$root" --split_path "$root" --test_ratio 0.25
