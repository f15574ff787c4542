#!/usr/bin/env bash
# BLOOMZ-7B1-mt on the four GPUs of one machine. The global batch is rows × accumulation × GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

torchrun --nproc_per_node 4 uniform_finetune.py --model_type bloom --model_name_or_path bigscience/bloomz-7b1-mt \
    --data alpaca-belle-cot --per_gpu_train_batch_size 4 --gradient_accumulation_steps 8 --learning_rate 3e-4 --epochs 1
python3 generate.py --data alpaca-belle-cot --model_type bloom --instruction "请介绍一下李白。"
