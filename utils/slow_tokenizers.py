"""Tokenizers of checkpoints that bring a vocabulary, and code that no longer runs.

Knows: what each of these families puts around a text, its control tokens and its chat form. Does not know
SentencePiece (`utils.pieces`) or models. ChatGLM-6B's has more of its own: `utils.chatglm.tokenization`.

No family's real vocabulary was at hand but LLaMA's: the facts below are those that published copies of the families'
own tokenizer code agree on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from utils.byte_bpe import QWEN_CONTROLS, QWEN_WORDS, byte_bpe, read_ranks
from utils.piece_tokenizer import SENTENCEPIECE_ROLES, Fastest, PieceTokenizer


class LlamaTokenizer(PieceTokenizer):
    """LLaMA 1 and 2 from `tokenizer.model`: BOS before a text.

    transformers 5 builds its own from that file; it splits doubled blanks otherwise than SentencePiece does, and drops
    one at the beginning of a text.
    """

    begins_with_bos = True


class ChatGLM2Tokenizer(PieceTokenizer):
    """ChatGLM2-6B: `[gMASK] sop` before a text, `</s>` ends it; chat in numbered rounds."""

    roles = MappingProxyType({"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"})
    after_pieces = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
    before_text = ("[gMASK]", "sop")
    # Its tokenizer's build_prompt. It knows no system message; ours stands before the first round.
    chat_form = (
        "[gMASK]sop{% set r = namespace(n=0) %}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{% set r.n = r.n + 1 %}[Round {{ r.n }}]\n\n问：{{ m['content'] }}\n\n答："
        "{% else %}{{ m['content'] }}{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endif %}{% endfor %}"
    )


class ChatGLM3Tokenizer(ChatGLM2Tokenizer):
    """ChatGLM3-6B: the same with a control token for each role; the next role's ends an answer."""

    after_pieces = (*ChatGLM2Tokenizer.after_pieces, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
    # Its tokenizer's build_chat_input: role, an empty line for metadata, text. The model writes the line behind
    # <|assistant|> itself, when it has no tool to name; here it stands in the prompt, in training as in serving. It
    # stops at <|user|>, which the template therefore writes behind the last answer.
    chat_form = (
        "[gMASK]sop{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' %}<|user|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )


class BaichuanTokenizer(PieceTokenizer):
    """Baichuan-7B and -13B: nothing around a text."""

    roles = MappingProxyType({**SENTENCEPIECE_ROLES, "pad_token": "<unk>"})


class Baichuan2Tokenizer(BaichuanTokenizer):
    """Baichuan2: the same; the chat models mark who speaks by two reserved pieces (ids 195 and 196)."""

    control_pieces = ("<reserved_106>", "<reserved_107>")
    # Its build_chat_input, with EOS behind each answer: without, nothing that stops generation would be trained there.
    chat_form = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<reserved_106>{% elif m['role'] == 'assistant' %}"
        "<reserved_107>{% endif %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<reserved_107>{% endif %}"
    )


class InternLMTokenizer(PieceTokenizer):
    """InternLM-7B and -20B: BOS before a text; `<eoh>` and `<eoa>` end a turn of the chat models."""

    roles = MappingProxyType({**SENTENCEPIECE_ROLES, "pad_token": "</s>"})
    control_pieces = ("<eoh>", "<eoa>")
    begins_with_bos = True


class InternLM2Tokenizer(InternLMTokenizer):
    """InternLM2: BOS before a text; the ChatML tokens are declared by the checkpoint's tokenizer_config.json."""

    control_pieces = ()
    chat_form = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# Its make_context, with the system message of its chat where a conversation brings none.
QWEN_CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class QwenTokenizer:
    """Qwen-7B and its siblings (the first generation): byte BPE from `qwen.tiktoken`."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """A fast tokenizer; `name` is a hub id or a directory, also one that it was saved to.

        Raises:
            ValueError: a line of `qwen.tiktoken` that is no token.
            OSError: no such file.
        """
        from transformers import PreTrainedTokenizerFast
        from transformers.utils.hub import cached_file

        known = {key: value for key, value in options.items() if key in ("revision", "local_files_only")}
        if (Path(name) / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(name, **known)
        path = cached_file(name, "qwen.tiktoken", **known)
        assert path is not None, "cached_file raises where there is none"
        end = QWEN_CONTROLS[0]
        return PreTrainedTokenizerFast(
            tokenizer_object=byte_bpe(read_ranks(Path(path)), QWEN_WORDS, QWEN_CONTROLS),
            # As its finetuning code has it: the end of a text is EOS and pads, and nothing comes first.
            eos_token=end,
            pad_token=end,
            chat_template=QWEN_CHAT,
            padding_side="left",
            model_input_names=["input_ids", "attention_mask"],
        )


class MossTokenizer:
    """MOSS: CodeGen's byte BPE from `vocab.json` and `merges.txt`, with the control tokens that the checkpoint adds."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """A fast tokenizer; `name` is a hub id or a directory, also one that it was saved to.

        Raises:
            ValueError: `vocab.json` or `merges.txt` is missing, empty or of another form.
            OSError: the hub cannot be had.
        """
        from transformers import CodeGenTokenizer

        known = {key: value for key, value in options.items() if key != "trust_remote_code"}
        _require_byte_bpe(name, known)
        try:
            made = CodeGenTokenizer.from_pretrained(name, **{"padding_side": "left", **known})
        except OSError:
            raise
        except Exception as error:  # tokenizers raises no other kind for a file that it cannot read
            cause = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{name}: vocab.json or merges.txt is not whole ({cause}): download them again") from error
        # added_tokens.json does not say which tokens are control tokens: all that it adds are.
        made.add_special_tokens({"extra_special_tokens": [str(token) for token in made.added_tokens_decoder.values()]})
        return made


def _require_byte_bpe(name: str, options: Mapping[str, Any]) -> None:
    """`ValueError` where a file is missing, for transformers does not say which."""
    from transformers.utils.hub import cached_file

    known = {key: value for key, value in options.items() if key in ("revision", "local_files_only")}

    def path(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **known)

    if path("tokenizer.json"):
        return
    for file in ("vocab.json", "merges.txt"):
        if not (found := path(file)):
            raise ValueError(f"{name} has no {file}: download it again")
        if not Path(found).stat().st_size:
            raise ValueError(f"{name} has an empty {file}: download it again")


SLOW_TOKENIZERS: Mapping[str, Any] = MappingProxyType(
    {
        "llama": Fastest(exact=LlamaTokenizer),
        "chatglm2": Fastest(exact=ChatGLM2Tokenizer),
        "chatglm3": Fastest(exact=ChatGLM3Tokenizer),
        "baichuan": Fastest(exact=BaichuanTokenizer),
        "baichuan2": Fastest(exact=Baichuan2Tokenizer),
        "internlm": Fastest(exact=InternLMTokenizer),
        "internlm2": Fastest(exact=InternLM2Tokenizer),
        "qwen": QwenTokenizer,
        "moss": MossTokenizer,
    }
)
"""Name → what has a `from_pretrained(name, **options)` that returns the tokenizer. ChatGLM-6B's is
`utils.chatglm.tokenization.ChatGLMTokenizer`."""
