#!/usr/bin/env bash
# Does reasoning in the data help? The same questions, with the reasoning and with the answer alone, on the tiny base.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 uniform_finetune.py --data cot_sample --output_dir saved_models/with_reasoning
python3 uniform_finetune.py --data answer_sample --output_dir saved_models/answer_alone
python3 evaluate.py --lora_dir saved_models/with_reasoning --data cot_sample_test --compare_base
python3 evaluate.py --lora_dir saved_models/answer_alone --data cot_sample_test
