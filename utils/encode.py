"""Segments become ids and labels, and each row proves that its labels are right.

Knows: how segments are tokenised and joined, and what is cut when a row is too long. Does not know torch, models or
files; what is proved is in `utils.proof`.

Each segment is tokenised once, by itself, and the ids are joined: the ids of a prompt in training are those that
inference sends, whatever the answer is. What a person wrote is encoded with control tokens split, so `</s>` typed by a
user stays four characters of text (feasible since `split_special_tokens` of transformers' tokenizers).

A tokenizer that puts something after a prompt (ChatGLM-6B: `[gMASK] <sop>`, in place of which the answer is written)
gives a row one answer, and so does a template that asks a first question otherwise than the first of several: a
dialogue then becomes a row for each of its answers, with all before it as context.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeVar

from utils.proof import IGNORED, Draft, Encoded, MaskError, Outcome, prove
from utils.readers import Row
from utils.templates import Segment, Template, prompts_of, render, render_prompt
from utils.tokens import Codec, Tokenizer, control_ids, prefix_ids, require_eos, suffix_ids

Truncation = Literal["drop", "prompt", "answer"]

_IdsOf = Mapping[tuple[str, bool], Sequence[int]]
"""The ids of a segment's (text, has_control)."""


Result = TypeVar("Result")
Stages = Generator[Callable[[], Any], Any, Result]
"""Yields work for the tokenizer, is sent its result, and returns a result in the end."""


def finish(stages: Stages[Result]) -> Result:
    """Runs stages to their end, each piece of work at once."""
    work = next(stages)
    while True:
        try:
            work = stages.send(work())
        except StopIteration as end:
            return end.value


class Encoder:
    """Rows as ids and labels, each of them proved.

    Args:
        cutoff_len: the most tokens a row may have, prompt and answer together.
        truncation: what happens to a longer row: `drop` it, cut its `prompt` from the left, or cut its `answer` from
            the right (which loses EOS, and is counted as that).

    Raises:
        ValueError: no EOS.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, *, cutoff_len: int, truncation: Truncation) -> None:
        self._template, self._tokenizer, self._codec = template, tokenizer, Codec(tokenizer)
        self._cutoff_len = cutoff_len
        self._truncation: Truncation = truncation
        self._frame = Frame.of(template, tokenizer)
        self._controls = control_ids(tokenizer)

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """The outcome of each row, in order; all texts are tokenised in one go.

        Raises:
            MaskError: a row failed the proof, or cannot be rendered; the message names it.
        """
        return finish(self.stages(rows))

    def stages(self, rows: Sequence[Row]) -> Stages[list[Outcome]]:
        """`__call__` as a generator that hands out the tokenizer's work, and is sent what came of it: that work needs
        no interpreter, so a caller can go on with other rows meanwhile."""
        rendered = [self._rendered(row) for row in rows]
        keys = {(s.text, s.has_control) for full, prompts in rendered for part in (full, *prompts) for s in part or ()}
        ids_of = yield functools.partial(self._tokenised, keys)
        drafts = [self._draft(row, *parts, ids_of) for row, parts in zip(rows, rendered, strict=True)]
        wanted = [ids for draft in drafts for ids in draft.whole_answers()]
        decoded = yield functools.partial(self._codec.texts, wanted)
        texts, outcomes = iter(decoded), []
        for draft in drafts:
            if draft.encoded is not None:
                prove(draft, list(islice(texts, draft.num_whole)), self._tokenizer, self._controls)
            outcomes.append(Outcome(encoded=draft.encoded, what=draft.what, spans=draft.kept_spans()))
        return outcomes

    def examples(self, row: Row) -> list[Row]:
        """The row, or where a row can have one answer only, a row for each answer of its dialogue."""
        record = row.record
        if not self._frame.one_answer or "conversation" not in record:
            return [row]
        ends = [len(prompt["conversation"]) + 1 for prompt in prompts_of(record)]
        return [replace(row, record={**record, "conversation": record["conversation"][:end]}) for end in ends]

    def _rendered(self, row: Row) -> tuple[list[Segment], list[list[Segment] | None]]:
        """The segments of the row, and those of the prompt before each of its answers; None for a prompt that the row
        begins with, which has the same ids then: a text is tokenised once, and by itself."""
        try:
            full = self._frame.arranged(render(row.record, self._template, self._tokenizer))
            asked = prompts_of(row.record)[-1:] if self._frame.one_answer else prompts_of(row.record)
            prompts = [self._frame.arranged(render_prompt(each, self._template, self._tokenizer)) for each in asked]
        except ValueError as error:
            raise MaskError(f"{row.origin}: {error}") from error
        return full, [None if full[: len(prompt)] == prompt else prompt for prompt in prompts]

    def _tokenised(self, keys: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], list[int]]:
        """The ids of each (text, has_control), each tokenised once."""
        found: dict[tuple[str, bool], list[int]] = {}
        for has_control in (False, True):
            texts = [text for text, control in keys if control == has_control]
            ids = self._codec.ids(texts, has_control=has_control)
            found.update(zip([(text, has_control) for text in texts], ids, strict=True))
        return found

    def _draft(
        self, row: Row, full: Sequence[Segment], prompts: Sequence[Sequence[Segment] | None], ids_of: _IdsOf
    ) -> Draft:
        (ids, labels), spans = self._frame.joined(full, ids_of)
        # A chat template writes its own BOS, which a cut prompt keeps as it keeps the tokenizer's.
        head = len(self._frame.prefix) or int(bool(ids) and ids[0] == self._tokenizer.bos_token_id)
        kept, what = truncate((ids, labels), self._cutoff_len, self._truncation, head, self._frame.least_context)
        encoded: Encoded | None = Encoded(input_ids=kept[0], labels=kept[1], origin=row.origin, source=row.source)
        if what.startswith("longer than"):
            encoded = None
        elif encoded.num_targets == 0:
            encoded, what = None, "no trained token is left"
        removed = len(ids) - len(kept[0]) if self._truncation == "prompt" else 0
        sent = [
            ids[:start] if segments is None else self._frame.joined(segments, ids_of)[0][0]
            for segments, (start, _) in zip(prompts, spans, strict=False)
        ]
        return Draft(
            encoded=encoded,
            row=row,
            answers=_answers(row)[-1:] if self._frame.one_answer else _answers(row),
            what=what,
            spans=spans,
            prompts=sent,
            head=head,
            removed=removed,
            cut=bool(what),
        )


def encode_rows(
    rows: Sequence[Row], template: Template, tokenizer: Tokenizer, *, cutoff_len: int, truncation: Truncation
) -> tuple[list[Encoded], Counter[str], Counter[str]]:
    """Rows in memory as ids and labels, in order; and counts of what was dropped and of what was cut. See `Encoder`."""
    outcomes = Encoder(template, tokenizer, cutoff_len=cutoff_len, truncation=truncation)(rows)
    encoded = [outcome.encoded for outcome in outcomes if outcome.encoded is not None]
    dropped = Counter(outcome.what for outcome in outcomes if outcome.encoded is None)
    truncated = Counter(outcome.what for outcome in outcomes if outcome.encoded is not None and outcome.what)
    return encoded, dropped, truncated


def encode_prompt(record: Any, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that inference sends for a record (its `output` is ignored)."""
    return _join_alone(render_prompt(record, template, tokenizer), template, tokenizer)[0][0]


def encode_answer(record: Mapping[str, Any], answer: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that training would have of `answer` behind the record's prompt, without what ends it."""
    answered = {**record, "output": answer}
    (ids, _), spans = _join_alone(render(answered, template, tokenizer), template, tokenizer)
    start, end = spans[-1]
    ends = stop_ids(template, tokenizer)
    while end > start and ids[end - 1] in ends:
        end -= 1
    return ids[start:end]


def cut_prompt(ids: Sequence[int], longest: int, template: Template, tokenizer: Tokenizer) -> list[int]:
    """A prompt's ids, cut from the left to `longest` as a training row's are with `--truncation prompt`: the
    tokenizer's prefix and the prompt's end stay.

    Raises:
        ValueError: what must stay is longer.
    """
    frame = Frame.of(template, tokenizer)
    head = len(frame.prefix) or int(bool(ids) and ids[0] == tokenizer.bos_token_id)
    if max(longest - head, 0) < frame.least_context:
        raise ValueError(f"no room for a prompt: {longest} tokens are left to it; lower --max_new_tokens")
    excess = max(0, len(ids) - longest)
    return [*ids[:head], *ids[head + excess :]]


def has_one_answer(template: Template, tokenizer: Tokenizer) -> bool:
    """Whether a row can have one answer only, and all before it is one text without EOS: what inference sends for an
    earlier answer is not how the row begins."""
    return template.one_exchange_is_instruction or not template.from_tokenizer and bool(suffix_ids(tokenizer))


def stop_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: EOS, and what the template writes where an answer ends."""
    probe = {"instruction": "a", "input": "", "output": "b"}
    (ids, labels), spans = _join_alone(render(probe, template, tokenizer), template, tokenizer)
    _, end = spans[-1]
    return sorted({require_eos(tokenizer), *([ids[end - 1]] if labels[end - 1] != IGNORED else [])})


def truncate(
    row: tuple[list[int], list[int]], cutoff_len: int, truncation: Truncation, num_prefix: int, least: int = 1
) -> tuple[tuple[list[int], list[int]], str]:
    """A row (ids, labels) of at most `cutoff_len` tokens, and what was done to it in words (empty: nothing).

    What cannot be cut by the policy, for the rest alone is too long, is to be dropped: the words then begin with
    "longer than". Cutting the prompt keeps the tokenizer's own prefix and the prompt's end, where the template says
    that the answer begins; at least `least` tokens of it.
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
        if first_target - num_prefix - least >= excess:
            keep = slice(num_prefix + excess, None)
            return (ids[:num_prefix] + ids[keep], labels[:num_prefix] + labels[keep]), "prompt cut from the left"
        dropped += " even without its prompt"
    return row, dropped


def _answers(row: Row) -> list[str]:
    if "conversation" in row.record:
        return [turn["content"] for turn in row.record["conversation"] if turn["role"] == "assistant"]
    return [row.record["output"]]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around the segments of a row: by the tokenizer's own rules, unless a chat template writes it."""

    prefix: list[int]
    """Before the first, usually BOS or nothing."""
    suffix: list[int]
    """Between the prompt and its only answer; usually nothing."""
    one_answer: bool
    """Whether a row can have one only; see `has_one_answer`."""
    eos: int

    @classmethod
    def of(cls, template: Template, tokenizer: Tokenizer) -> Frame:
        """`ValueError` where the tokenizer has no EOS."""
        dressed = not template.from_tokenizer
        return cls(
            prefix=prefix_ids(tokenizer) if dressed else [],
            suffix=suffix_ids(tokenizer) if dressed else [],
            one_answer=has_one_answer(template, tokenizer),
            eos=require_eos(tokenizer),
        )

    @property
    def least_context(self) -> int:
        """Tokens of a prompt's end that must stay: one, from which the first target is predicted, or the suffix."""
        return max(1, len(self.suffix))

    def arranged(self, segments: list[Segment]) -> list[Segment]:
        """The segments of a row or prompt; where a row has one answer, all before it is one text without EOS."""
        if not self.one_answer:
            return segments
        last = [segments[-1]] if segments[-1].is_target else []
        context = Segment(text="".join(segment.text for segment in segments[: len(segments) - len(last)]))
        return [context, *last]

    def joined(
        self, segments: Iterable[Segment], ids_of: _IdsOf
    ) -> tuple[tuple[list[int], list[int]], list[tuple[int, int]]]:
        """The ids and labels of segments, and [start, end) of each run of targets."""
        ids = list(self.prefix)
        labels = [IGNORED] * len(ids)
        spans: list[tuple[int, int]] = []
        for segment in segments:
            piece = ids_of[segment.text, segment.has_control]
            if segment.ends_turn:
                piece = [*piece, self.eos]
            if self.suffix and not segment.is_target:
                piece = [*piece, *self.suffix]
            if segment.is_target:
                continues = spans and spans[-1][1] == len(ids)
                start = spans.pop()[0] if continues else len(ids)
                spans.append((start, len(ids) + len(piece)))
            ids += piece
            labels += piece if segment.is_target else [IGNORED] * len(piece)
        return (ids, labels), spans


def _join_alone(
    segments: list[Segment], template: Template, tokenizer: Tokenizer
) -> tuple[tuple[list[int], list[int]], list[tuple[int, int]]]:
    """The ids, labels and target runs of one rendering."""
    codec, frame = Codec(tokenizer), Frame.of(template, tokenizer)
    arranged = frame.arranged(segments)
    ids_of = {(s.text, s.has_control): codec.ids([s.text], has_control=s.has_control)[0] for s in arranged}
    return frame.joined(arranged, ids_of)
