#!/usr/bin/env bash
# Chain-of-thought data from its upstream files, with the steps and without, and a first look. Needs the network.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 prepare_data.py fetch cot_gsm8k --raw
python3 prepare_data.py convert cot_gsm8k data/raw/cot_gsm8k/gsm8k_train.tsv -o data/gsm8k_cot.json
python3 prepare_data.py convert cot_gsm8k data/raw/cot_gsm8k/gsm8k_train.tsv -o data/gsm8k_answers.json --style answer_only
python3 prepare_data.py check data/gsm8k_cot.json
python3 prepare_data.py stats data/gsm8k_cot.json data/gsm8k_answers.json --tokenizer assets/tiny_base
python3 uniform_finetune.py --data data/gsm8k_cot.json --dry_run
