"""Segments become ids and labels, and each row proves that its labels are right.

Knows: how segments are tokenised and joined, what is cut when a row is too long, and the mask proof. Does not know
torch, models or files; the tokenizer is known by what it can do (`Tokenizer`).

Each segment is tokenised once, by itself, and the ids are joined: the ids of a prompt in training are those that
inference sends, whatever the answer is. What a person wrote is encoded with control tokens split, so `</s>` typed by a
user stays four characters of text (feasible since `split_special_tokens` of transformers' tokenizers).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from utils.readers import Row
from utils.templates import Segment, Template, prompts_of, render, render_prompt

IGNORED = -100
"""The label of a token without loss; torch's cross-entropy ignores it by default."""

Truncation = Literal["drop", "prompt", "answer"]


class Tokenizer(Protocol):
    """What encoding needs of a tokenizer; transformers' have it."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: Any
    unk_token_id: int | None
    chat_template: Any
    all_special_tokens: list[str]
    all_special_ids: list[int]
    added_tokens_decoder: Mapping[int, Any]

    def __call__(self, text: Any, *, add_special_tokens: bool, split_special_tokens: bool = False) -> Any: ...
    def decode(
        self, token_ids: Any, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> Any: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A row ready for a batch: `labels` is as long as `input_ids`, and equals it where the loss is taken."""

    input_ids: list[int]
    labels: list[int]
    origin: str
    source: str = ""

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss; the first token of a row never can."""
        return sum(label != IGNORED for label in self.labels[1:])


class MaskError(ValueError):
    """A row whose labels are not what they must be; training on it would teach something else than the record says."""


def require_eos(tokenizer: Tokenizer) -> int:
    """The id of EOS; `ValueError` where there is none, for a model trained without it never stops."""
    if tokenizer.eos_token_id is None or not tokenizer.eos_token:
        raise ValueError(
            "this tokenizer has no EOS token, so the model could not learn to stop: set eos_token in its "
            "tokenizer_config.json (for the first LLaMA it is </s>)"
        )
    return tokenizer.eos_token_id


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text, usually BOS or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(dressed) - len(plain) + 1):
        if dressed[start : start + len(plain)] == plain:
            return list(dressed[:start])
    return []


def encode_rows(
    rows: Sequence[Row], template: Template, tokenizer: Tokenizer, *, cutoff_len: int, truncation: Truncation
) -> tuple[list[Encoded], Counter[str], Counter[str]]:
    """Rows as ids and labels, in order, each of them proved; and counts of what was dropped and of what was cut.

    Args:
        cutoff_len: the most tokens a row may have, prompt and answer together.
        truncation: what happens to a longer row: `drop` it, cut its `prompt` from the left, or cut its `answer` from
            the right (which loses EOS, and is counted as that).

    Raises:
        MaskError: a row failed the proof; the message names it.
        ValueError: no EOS; a chat template that cannot be trained with.
    """
    require_eos(tokenizer)
    prefix = _prefix(template, tokenizer)
    encoded, dropped, truncated = [], Counter(), Counter()
    for row in rows:
        try:
            full, spans = _join(render(row.record, template, tokenizer), prefix, tokenizer)
        except ValueError as error:
            raise MaskError(f"{row.origin}: {error}") from error
        # A chat template writes its own BOS, which a cut prompt keeps as it keeps the tokenizer's.
        head = len(prefix) or int(full[0][0] == tokenizer.bos_token_id)
        kept, what = truncate(full, cutoff_len, truncation, head)
        result = Encoded(input_ids=kept[0], labels=kept[1], origin=row.origin, source=row.source)
        if what.startswith("longer than"):
            dropped[what] += 1
        elif result.num_targets == 0:
            dropped["no trained token is left"] += 1
        else:
            truncated.update([what] if what else [])
            removed = len(full[0]) - len(kept[0]) if truncation == "prompt" else 0
            prove(result, row, spans, template, tokenizer, prefix=prefix, removal=(head, removed), cut=bool(what))
            encoded.append(result)
    return encoded, dropped, truncated


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of control tokens; not of UNK, which stands for text."""
    marked = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *marked} - {tokenizer.unk_token_id}  # pyright: ignore[reportReturnType]


def encode_prompt(record: Any, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that inference sends for a record (its `output` is ignored)."""
    return _prompt_ids(record, template, tokenizer, _prefix(template, tokenizer))


def stop_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: EOS, and what the template writes where an answer ends."""
    probe = {"instruction": "a", "input": "", "output": "b"}
    (ids, labels), spans = _join(render(probe, template, tokenizer), _prefix(template, tokenizer), tokenizer)
    _, end = spans[-1]
    return sorted({require_eos(tokenizer), *([ids[end - 1]] if labels[end - 1] != IGNORED else [])})


def truncate(
    row: tuple[list[int], list[int]], cutoff_len: int, truncation: Truncation, num_prefix: int
) -> tuple[tuple[list[int], list[int]], str]:
    """A row (ids, labels) of at most `cutoff_len` tokens, and what was done to it in words (empty: nothing).

    What cannot be cut by the policy, for the rest alone is too long, is to be dropped: the words then begin with
    "longer than". Cutting the prompt keeps the tokenizer's own prefix and the prompt's end, where the template says
    that the answer begins.
    """
    ids, labels = row
    excess = len(ids) - cutoff_len
    if excess <= 0:
        return row, ""
    dropped = f"longer than --cutoff_len {cutoff_len}"
    if truncation == "answer":
        return (ids[:cutoff_len], labels[:cutoff_len]), "answer cut from the right; EOS is not trained in these rows"
    if truncation == "prompt":
        first_target = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
        # One token of the prompt must stay, for the first target is predicted from it.
        if first_target - num_prefix > excess:
            keep = slice(num_prefix + excess, None)
            return (ids[:num_prefix] + ids[keep], labels[:num_prefix] + labels[keep]), "prompt cut from the left"
        dropped += " even without its prompt"
    return row, dropped


def prove(
    encoded: Encoded,
    row: Row,
    spans: Sequence[tuple[int, int]],
    template: Template,
    tokenizer: Tokenizer,
    *,
    prefix: Sequence[int],
    removal: tuple[int, int] = (0, 0),
    cut: bool = False,
) -> None:
    """Checks one row's labels against its record; `MaskError` names the row and what is wrong.

    1. At least one token is trained, and every label is its token.
    2. No control token stands twice in a row.
    3. The ids before each answer are the ids that inference sends for it.
    4. Trained text decodes to the assistant's text, with no control token inside, and a control token ends it.
    5. Nothing else is trained.

    Args:
        spans: [start, end) of each answer in the row before it was cut, with the token that ends it.
        prefix: what the tokenizer puts before a text.
        removal: (from, count) of the tokens that were cut from the prompt; the checks allow for exactly these.
        cut: whether anything was cut, so that answers may be missing at the end.
    """
    ids, labels = encoded.input_ids, encoded.labels
    if encoded.num_targets == 0 or any(label not in (IGNORED, token) for token, label in zip(ids, labels, strict=True)):
        raise MaskError(f"{row.origin}: no token is trained, or a label differs from its token")
    specials = control_ids(tokenizer)
    doubled = next((a for a, b in zip(ids, ids[1:], strict=False) if a == b and a in specials), None)
    if doubled is not None:
        raise MaskError(f"{row.origin}: the control token {tokenizer.decode([doubled])!r} stands twice in a row")
    answers = _answers(row)
    if len(spans) != len(answers):
        raise MaskError(f"{row.origin}: {len(answers)} answers, but {len(spans)} trained spans")
    (head, removed), shown = removal, 0
    for prompt, answer, (start, end) in zip(prompts_of(row.record), answers, spans, strict=True):
        begin, stop = start - removed, min(end - removed, len(ids))
        sent = _prompt_ids(prompt, template, tokenizer, prefix)
        sent = sent[:head] + sent[head + removed :]
        if sent[: len(ids)] != ids[:begin]:
            raise MaskError(
                f"{row.origin}: the prompt differs from what inference sends: {_show(sent, ids[:begin], tokenizer)}"
            )
        shown += max(0, stop - begin)
        if stop == end - removed:
            _prove_answer(ids[begin:stop], answer, row, tokenizer)
    trained = sum(label != IGNORED for label in labels)
    if trained != shown or (not cut and trained != sum(end - start for start, end in spans)):
        raise MaskError(f"{row.origin}: {trained} tokens are trained where the answers have {shown}")


def _prove_answer(ids: Sequence[int], answer: str, row: Row, tokenizer: Tokenizer) -> None:
    *text, end = ids
    if end not in control_ids(tokenizer):
        raise MaskError(
            f"{row.origin}: the answer does not end with a control token, but with {tokenizer.decode([end])!r}"
        )
    if set(text) & control_ids(tokenizer):
        raise MaskError(f"{row.origin}: a control token stands inside the answer {answer!r}")
    decoded = tokenizer.decode(text, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # Some tokenizers cannot write every text exactly: SentencePiece may fold spaces, others normalise characters. What
    # differs in more than that is another text.
    if decoded != answer and _folded(decoded) != _folded(answer):
        raise MaskError(f"{row.origin}: the trained ids read {decoded!r}, the record says {answer!r}")


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _answers(row: Row) -> list[str]:
    if "conversation" in row.record:
        return [turn["content"] for turn in row.record["conversation"] if turn["role"] == "assistant"]
    return [row.record["output"]]


def _prefix(template: Template, tokenizer: Tokenizer) -> list[int]:
    """A chat template writes its own BOS, if it wants one."""
    return [] if template.from_tokenizer else prefix_ids(tokenizer)


def _prompt_ids(record: Any, template: Template, tokenizer: Tokenizer, prefix: Sequence[int]) -> list[int]:
    (ids, _), _ = _join(render_prompt(record, template, tokenizer), prefix, tokenizer)
    return ids


def _join(
    segments: Iterable[Segment], prefix: Sequence[int], tokenizer: Tokenizer
) -> tuple[tuple[list[int], list[int]], list[tuple[int, int]]]:
    """The ids and labels of segments after `prefix`, and [start, end) of each run of targets."""
    ids = list(prefix)
    labels = [IGNORED] * len(ids)
    spans: list[tuple[int, int]] = []
    for segment in segments:
        encoded = tokenizer(segment.text, add_special_tokens=False, split_special_tokens=not segment.has_control)
        piece = [*encoded["input_ids"], *([require_eos(tokenizer)] if segment.ends_turn else [])]
        if segment.is_target:
            continues = spans and spans[-1][1] == len(ids)
            start = spans.pop()[0] if continues else len(ids)
            spans.append((start, len(ids) + len(piece)))
        ids += piece
        labels += piece if segment.is_target else [IGNORED] * len(piece)
    return (ids, labels), spans


def _show(expected: Sequence[int], found: Sequence[int], tokenizer: Tokenizer) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found))
    )
    return (
        f"from token {at} on inference sends {tokenizer.decode(list(expected[at : at + 8]))!r}, "
        f"training has {tokenizer.decode(list(found[at : at + 8]))!r}"
    )
