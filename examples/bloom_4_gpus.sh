#!/usr/bin/env bash
# BLOOMZ-7B1-mt on the four GPUs of one machine. A step has 128 rows in all.
set -euo pipefail
cd "$(dirname "$0")/.."

torchrun --nproc_per_node 4 uniform_finetune.py --model_type bloom --model_name_or_path bigscience/bloomz-7b1-mt \
    --data alpaca-belle-cot --batch_size 128 --learning_rate 3e-4 --epochs 1
python3 generate.py --data alpaca-belle-cot --model_type bloom --instruction "请介绍一下李白。"
