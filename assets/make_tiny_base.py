"""Makes the bundled tiny base: a Llama of about a million parameters and its tokenizer, from text we generate.

    python3 assets/make_tiny_base.py                       # writes assets/tiny_base
    python3 assets/make_tiny_base.py --out /tmp/base --steps 200

The base learns one-step arithmetic on a ring of ten, plain one-step questions in English and Chinese in the Alpaca
prompt, and to repeat a question. It never sees a solution of more than one step, nor the words of the reasoning format.
Two settings matter (both measured, `docs/log.md`): weights start at about 1/sqrt(width), not at Llama's 0.02, and the
loss on facts is taken on the result alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import puzzles, templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Piece = tuple[str, bool]  # text, is the loss taken on it
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
UNK, BOS, EOS, PAD = range(4)
FACTS_ONLY_STEPS = 150


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the bundled tiny base model and its tokenizer.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny_base")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=32, help="documents a step")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab_size", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def prompt(instruction: str) -> str:
    return templates.TEMPLATES["alpaca"].without_input.format(instruction=instruction)


def make_facts(rng: random.Random) -> list[Piece]:
    """Ten facts `9+4→3`; only the results carry loss, for the operands are random and cannot be learned."""
    pieces = []
    for _ in range(10):
        operator = rng.choice("+-×")
        digit, amount = rng.randint(0, 9), rng.choice(puzzles.AMOUNTS[operator])
        pieces += [(f"{digit}{operator}{amount}→", False), (f"{puzzles.move(operator, digit, amount)}", True)]
        pieces.append((rng.choice((", ", "，")), False))
    return pieces


def make_document(rng: random.Random, step: int, words: Sequence[str]) -> list[Piece]:
    """A document of the pretraining text; facts alone at first, for nothing else can be learned before them.

    Repeating random `words` makes every token one that the model can write: an adapter can hardly raise one that the
    head has never had as a target (measured: its probability stayed near 0.35, `docs/log.md`).
    """
    kind = rng.random() if step >= FACTS_ONLY_STEPS else 0.0
    if kind < 0.35:
        return make_facts(rng)
    language = rng.choice(puzzles.LANGUAGES)
    if kind < 0.6:
        text = puzzles.make_puzzle(rng, language, rng.randint(1, 4)).question
        if words and kind < 0.4:
            text = "".join(rng.choice(words) for _ in range(rng.randint(2, 12)))
        return [(prompt(("Repeat: " if language == "en" else "重复：") + text), False), (text, True)]
    puzzle = puzzles.make_puzzle(rng, language, 1)
    if kind < 0.8:
        return [(prompt(puzzle.question), False), (puzzle.plain_answer(), True)]
    return [
        (prompt(("Write the step: " if language == "en" else "写出这一步：") + puzzle.question), False),
        (str(puzzle.steps[0]), True),
    ]


def make_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the generated text: any text has ids; digits and Chinese characters stay single."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = Regex(r"\p{N}|\p{Han}| ?[A-Za-z]+|\n+| ?[^\s\p{L}\p{N}]+|\s+|\p{L}+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(seed)
    texts = ["".join(text for text, _ in make_document(rng, FACTS_ONLY_STEPS, ())) for _ in range(4000)]
    # The words of the reasoning format have tokens too; the model has not met them, but they are one piece each.
    samples = [puzzles.make_puzzle(rng, rng.choice(puzzles.LANGUAGES), 3) for _ in range(400)]
    texts += [puzzle.reasoned_answer() for puzzle in samples]
    texts += [templates.TEMPLATES["alpaca"].with_input] * 40
    tokenizer.train_from_iterator(texts, trainer)
    unk, bos, eos, pad = SPECIAL
    tokenizer.post_processor = _bos_processor(bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _bos_processor(bos: str):
    from tokenizers import processors

    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, BOS)])


def printable_words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of every token that is whole characters."""
    texts = (str(tokenizer.decode([token])) for token in range(len(SPECIAL), len(tokenizer)))
    return [text for text in texts if "\ufffd" not in text]


def make_batch(rng: random.Random, step: int, size: int, words: Sequence[str], tokenizer: PreTrainedTokenizerFast):
    """`input_ids` and `labels`, both int64 (size, longest), of `size` documents."""
    import torch

    rows = []
    for _ in range(size):
        ids, labels = [BOS], [-100]
        pieces = make_document(rng, step, words)
        encoded = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
        for piece, (_, is_target) in zip(encoded, pieces, strict=True):
            ids += piece
            labels += piece if is_target else [-100] * len(piece)
        rows.append(([*ids, EOS], [*labels, EOS]))
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([targets + [-100] * (longest - len(targets)) for _, targets in rows])
    return input_ids, labels


def train(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace):
    """The trained base (fp32) and the mean loss of the last 50 steps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden,
            intermediate_size=args.hidden * 8 // 3 // 8 * 8,
            num_hidden_layers=args.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            initializer_range=0.08,
            tie_word_embeddings=False,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    decay = args.steps * 0.4
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50, (args.steps - step) / decay + 0.02)
    )
    rng, start, losses = random.Random(args.seed + 1), time.perf_counter(), []
    words = printable_words(tokenizer)
    for step in range(args.steps):
        input_ids, labels = make_batch(rng, step, args.batch_size, words, tokenizer)
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            recent = sum(losses[-50:]) / 50
            print(f"step {step + 1}/{args.steps}  loss {recent:.4f}  {time.perf_counter() - start:.0f} s", flush=True)
    return model, sum(losses[-50:]) / len(losses[-50:])


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer(args.vocab_size, args.seed)
    start = time.perf_counter()
    model, loss = train(tokenizer, args)
    seconds = time.perf_counter() - start
    model.generation_config.pad_token_id = PAD
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": args.layers,
        "hidden": args.hidden,
        "vocabulary": len(tokenizer),
        "steps": args.steps,
        "documents_a_step": args.batch_size,
        "learning_rate": args.learning_rate,
        "loss": round(loss, 4),
        "seconds": round(seconds),
        "threads": args.threads,
        "seed": args.seed,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    (args.out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(card(facts), encoding="utf-8")
    print(json.dumps(facts))
    return 0


def card(facts: Mapping[str, Any]) -> str:
    """The model card, from what the script knows of its own run."""
    return f"""---
license: apache-2.0
language: [en, zh]
library_name: transformers
pipeline_tag: text-generation
tags: [alpaca-cot]
---

# The bundled tiny base

A Llama of {facts["parameters"]:,} parameters ({facts["layers"]} layers, hidden {facts["hidden"]}) with its own tokenizer
of {facts["vocabulary"]} tokens: byte-level BPE, so that any text has ids; digits and Chinese characters stay single. It
exists to be fine-tuned in a minute or two on a CPU. It is ours from the first byte: nothing in it comes from another model
or data set.

**Trained on** text that [make_tiny_base.py](../make_tiny_base.py) generates, in English and Chinese: single arithmetic
facts on a ring of ten (`9+4→3`), plain one-step questions with plain answers, one-step questions that ask for their
equation, questions to repeat, and random words to repeat. It has never seen a solution of more than one step, nor the words
that announce an answer after reasoning.

**How**: {facts["steps"]:,} steps of {facts["documents_a_step"]} documents, AdamW, peak learning rate
{facts["learning_rate"]}, seed {facts["seed"]}; mean loss of the last 50 steps {facts["loss"]} nats per trained token (random
words, which cannot be predicted, included); {facts["seconds"]:,} s on {facts["threads"]} CPU threads, torch
{facts["torch"]}, {facts["date"]}.

**Make it again**: `python3 assets/make_tiny_base.py`. On the same machine and versions the same seed gives the same loss.

**Not for** anything but demonstrations and tests: it cannot hold a conversation, and asked for several steps it guesses.
"""


if __name__ == "__main__":
    sys.exit(main())
