"""A model of ours as EleutherAI's harness takes one: what it sends is the trained prompt, id for id.

Knows: the methods of `lm_eval.models.huggingface.HFLM` that make ids of texts, and texts of ids. Does not know tasks
(`utils.harness`). It can be imported only where lm_eval is installed.

The harness decodes and weighs by itself, with transformers alone, so what it finds is a second opinion.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from utils import adapters
from utils.assistant import Assistant
from utils.stopping import decoded
from utils.templates import render_prompt
from utils.tokens import Codec

logging.getLogger("lm_eval").setLevel(logging.ERROR)
HFLM: Any = importlib.import_module("lm_eval.models.huggingface").HFLM

GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""A model may bring settings of its own, which the harness would leave on."""


class TrainedPrompt(HFLM):
    """To be called with `apply_chat_template=True`: then a task's text is what is asked, in the trained prompt.

    A prompt that does not fit is cut from the left, as the harness does, and counted in `cut`.
    """

    def __init__(self, opened: Assistant, *, batch_size: int) -> None:
        self.known: dict[str, list[int]] = {}
        """Prompts by their text."""
        self.cut = 0
        self._opened, self._origin, self._ends = opened, opened.origin(None), opened.ends()
        self._codec = Codec(self._origin.tokenizer)
        context, virtual = adapters.context_length(opened.model), adapters.virtual_tokens(opened.model)
        super().__init__(
            pretrained=opened.model,
            tokenizer=self._origin.tokenizer,
            backend="causal",
            batch_size=1 if virtual else batch_size,  # padding would come between virtual tokens and a prompt
            **({} if context is None else {"max_length": context - virtual}),
        )

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of the trained prompt, with what is begun of the answer; its ids are kept for it."""
        messages = [{"role": each["role"], "content": each["content"]} for each in chat_history]
        begun = "" if add_generation_prompt else messages.pop()["content"]
        record: dict[str, Any] = {"conversation": messages}
        if len(messages) == 1:  # a question by itself is an instruction, as it is in an exam
            record = {"instruction": messages[0]["content"], "input": ""}
        segments = render_prompt(record, self._origin.template, self._origin.tokenizer)
        text = "".join(segment.text for segment in segments) + begun
        self.known[text] = [*self._opened.prompt_ids(record), *self._ids(begun)]
        return text

    def chat_template(self, chat_template: Any = False) -> str:
        """For the harness's records."""
        return f"{self._origin.model_type}: as it was trained"

    def tok_encode(self, string: str, *given: Any, **options: Any) -> list[int]:
        """Ids of a known prompt, or of another text as the tokenizer makes them."""
        return list(self.known[string]) if string in self.known else super().tok_encode(string, *given, **options)

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded ids and their mask, (rows, longest)."""
        rows = [self.tok_encode(string) for string in strings]
        if left_truncate_len is not None:
            self.cut += sum(len(ids) > left_truncate_len for ids in rows)
            rows = [ids[-left_truncate_len:] for ids in rows]
        longest, pad = max(map(len, rows)), self._origin.tokenizer.pad_token_id
        padded = [[pad] * (longest - len(ids)) + ids for ids in rows]
        masks = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]
        return torch.tensor(padded), torch.tensor(masks)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """As our answers are decoded."""
        if isinstance(tokens, list) and skip_special_tokens:
            return decoded(self._origin.tokenizer, tokens[: self._ends.end_of(tokens)])
        return super().tok_decode(tokens, skip_special_tokens=skip_special_tokens)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers, without the texts that end them."""
        return [self._ends.cut(text)[0] for text in super().generate_until(requests, disable_tqdm)]

    def _ids(self, text: str) -> list[int]:
        """Of an answer or its beginning, which training tokenises by itself."""
        return self._codec.ids([text], has_control=False)[0]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self.known:
            return super()._encode_pair(context, continuation)
        return self.tok_encode(context), self._ids(continuation)

    def _model_call(self, inps: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        return super()._model_call(inps, *given, **options)[:, -inps.shape[1] :]  # behind virtual tokens

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        given = GREEDY | options | {"eos_token_id": list(self._ends.ids)}
        return super()._model_generate(context, max_length, [*stop, *self._ends.texts], **given)
