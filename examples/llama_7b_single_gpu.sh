#!/usr/bin/env bash
# LLaMA-7B on one GPU: look at the data, train in 8 bits with LoRA, ask. BASE is a local directory or a hub id.
set -euo pipefail
cd "$(dirname "$0")/.."
BASE=${BASE:-huggyllama/llama-7b}

python3 uniform_finetune.py --model_type llama --model_name_or_path "$BASE" --data alpaca-belle-cot --preview 3
python3 uniform_finetune.py --model_type llama --model_name_or_path "$BASE" --data alpaca-belle-cot \
    --lora_target_modules q_proj v_proj --per_gpu_train_batch_size 4 --learning_rate 3e-4 --epochs 1 \
    --output_dir saved_models/llama_cot
python3 generate.py --lora_dir saved_models/llama_cot --greedy \
    --instruction "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total?"
