"""Segments become ids and labels, and each row proves that its labels are right.

Knows: how segments are tokenised and joined, what is cut when a row is too long, and the mask proof. Does not know
torch, models or files.

Each segment is tokenised once, by itself, and the ids are joined: the ids of a prompt in training are those that
inference sends, whatever the answer is. What a person wrote is encoded with control tokens split, so `</s>` typed by a
user stays four characters of text (feasible since `split_special_tokens` of transformers' tokenizers).
"""

from __future__ import annotations

import functools
import itertools
import operator
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

from utils.readers import Row
from utils.templates import Segment, Template, prompts_of, render, render_prompt
from utils.tokens import Codec, Tokenizer, control_ids, prefix_ids, require_eos

IGNORED = -100
"""The label of a token without loss; torch's cross-entropy ignores it by default."""

Truncation = Literal["drop", "prompt", "answer"]

_IdsOf = Mapping[tuple[str, bool], Sequence[int]]
"""The ids of a segment's (text, has_control)."""


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
        return len(self.labels) - self.labels.count(IGNORED) - (self.labels[:1] not in ([], [IGNORED]))


class MaskError(ValueError):
    """A row whose labels are not what they must be; training on it would teach something else than the record says."""


class Outcome(NamedTuple):
    """What became of a row: encoded, or dropped."""

    encoded: Encoded | None
    what: str = ""
    """Why it was dropped, or what was cut; empty for a row that was taken as it is."""
    spans: Sequence[int] = ()
    """[start, end) of each run of trained tokens, one after the other."""


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
        self._eos, self._prefix = require_eos(tokenizer), _prefix(template, tokenizer)
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

    def _rendered(self, row: Row) -> tuple[list[Segment], list[list[Segment] | None]]:
        """The segments of the row, and those of the prompt before each of its answers; None for a prompt that the row
        begins with, which has the same ids then: a text is tokenised once, and by itself."""
        try:
            full = render(row.record, self._template, self._tokenizer)
            prompts = [render_prompt(each, self._template, self._tokenizer) for each in prompts_of(row.record)]
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
        (ids, labels), spans = _join(full, self._prefix, ids_of, self._eos)
        # A chat template writes its own BOS, which a cut prompt keeps as it keeps the tokenizer's.
        head = len(self._prefix) or int(bool(ids) and ids[0] == self._tokenizer.bos_token_id)
        kept, what = truncate((ids, labels), self._cutoff_len, self._truncation, head)
        encoded: Encoded | None = Encoded(input_ids=kept[0], labels=kept[1], origin=row.origin, source=row.source)
        if what.startswith("longer than"):
            encoded = None
        elif encoded.num_targets == 0:
            encoded, what = None, "no trained token is left"
        removed = len(ids) - len(kept[0]) if self._truncation == "prompt" else 0
        sent = [
            ids[:start] if segments is None else _join(segments, self._prefix, ids_of, self._eos)[0][0]
            for segments, (start, _) in zip(prompts, spans, strict=False)
        ]
        return Draft(
            encoded=encoded, row=row, what=what, spans=spans, prompts=sent, head=head, removed=removed, cut=bool(what)
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


def stop_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids that end an answer: EOS, and what the template writes where an answer ends."""
    probe = {"instruction": "a", "input": "", "output": "b"}
    (ids, labels), spans = _join_alone(render(probe, template, tokenizer), template, tokenizer)
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


@dataclass(kw_only=True)
class Draft:
    """A row as encoded, and what its proof needs."""

    encoded: Encoded | None
    """None for a row that is dropped."""
    row: Row
    what: str
    spans: list[tuple[int, int]]
    """[start, end) of each answer in the row before it was cut, with the token that ends it."""
    prompts: list[list[int]]
    """The ids that inference sends for each of the answers."""
    head: int
    """Where tokens were cut from the prompt, and `removed` how many; the checks allow for exactly these."""
    removed: int = 0
    cut: bool = False
    """Whether anything was cut, so that answers may be missing at the end."""

    def kept_spans(self) -> list[int]:
        """[start, end) of each answer in the row as it is now, one after the other; without those cut away."""
        size = len(self.encoded.input_ids) if self.encoded else 0
        moved = [(start - self.removed, min(end - self.removed, size)) for start, end in self.spans]
        return [place for start, end in moved if start < end for place in (start, end)]

    def __post_init__(self) -> None:
        size = len(self.encoded.input_ids) if self.encoded else 0
        self.num_whole = sum([end - self.removed <= size for _, end in self.spans])
        """How many answers are whole; what is cut, is cut from the last ones."""

    def whole_answers(self) -> list[list[int]]:
        """The ids of each answer that is whole, without the token that ends it."""
        ids = self.encoded.input_ids if self.encoded else []
        return [ids[start - self.removed : end - self.removed - 1] for start, end in self.spans[: self.num_whole]]


def prove(draft: Draft, texts: Sequence[str], tokenizer: Tokenizer, controls: set[int]) -> None:
    """Checks one row's labels against its record; `MaskError` names the row and what is wrong.

    1. At least one token is trained.
    2. No control token stands twice in a row.
    3. The ids before each answer are the ids that inference sends for it.
    4. Trained text decodes to the assistant's text, with no control token inside, and a control token ends it.
    5. The labels are the tokens of the answers, and nothing else is trained.

    Args:
        texts: what each of `draft.whole_answers()` decodes to.
        controls: the ids of control tokens.
    """
    encoded, row = draft.encoded, draft.row
    assert encoded is not None, "a dropped row has nothing to prove"
    ids, labels = encoded.input_ids, encoded.labels
    if encoded.num_targets == 0:
        raise MaskError(f"{row.origin}: no token is trained")
    if len(ids) < 3 or not controls.isdisjoint(ids[1:-1]):  # where they stand at the ends alone, none is doubled
        for control in controls.intersection(ids):
            if any(a == b == control for a, b in itertools.pairwise(ids)):
                raise MaskError(
                    f"{row.origin}: the control token {tokenizer.decode([control])!r} stands twice in a row"
                )
    answers = _answers(row)
    if len(draft.spans) != len(answers):
        raise MaskError(f"{row.origin}: {len(answers)} answers, but {len(draft.spans)} trained spans")
    decoded, head, removed, expected = iter(texts), draft.head, draft.removed, [IGNORED] * len(ids)
    for prompt, answer, (start, end) in zip(draft.prompts, answers, draft.spans, strict=True):
        begin, stop = start - removed, min(end - removed, len(ids))
        sent = prompt[:head] + prompt[head + removed :] if removed else prompt
        if sent[: len(ids)] != ids[:begin]:
            raise MaskError(
                f"{row.origin}: the prompt differs from what inference sends: {_show(sent, ids[:begin], tokenizer)}"
            )
        expected[begin:stop] = ids[begin:stop]
        if stop == end - removed:
            _prove_answer(ids[begin:stop], answer, next(decoded), row, tokenizer, controls)
        elif not draft.cut:
            raise MaskError(f"{row.origin}: an answer of {end - start} tokens is not whole, though nothing was cut")
    if labels != expected:
        wrong = sum(map(operator.ne, labels, expected)) + abs(len(labels) - len(expected))
        raise MaskError(f"{row.origin}: {wrong} labels differ from the answers' tokens, which alone are trained")


def _prove_answer(
    ids: Sequence[int], answer: str, decoded: str, row: Row, tokenizer: Tokenizer, controls: set[int]
) -> None:
    *text, end = ids
    if end not in controls:
        raise MaskError(
            f"{row.origin}: the answer does not end with a control token, but with {tokenizer.decode([end])!r}"
        )
    if not controls.isdisjoint(text):
        raise MaskError(f"{row.origin}: a control token stands inside the answer {answer!r}")
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


def _join_alone(
    segments: Sequence[Segment], template: Template, tokenizer: Tokenizer
) -> tuple[tuple[list[int], list[int]], list[tuple[int, int]]]:
    """`_join` for one rendering, after what the tokenizer puts before it."""
    codec = Codec(tokenizer)
    ids_of = {(s.text, s.has_control): codec.ids([s.text], has_control=s.has_control)[0] for s in segments}
    return _join(segments, _prefix(template, tokenizer), ids_of, require_eos(tokenizer))


def _join(
    segments: Iterable[Segment], prefix: Sequence[int], ids_of: _IdsOf, eos: int
) -> tuple[tuple[list[int], list[int]], list[tuple[int, int]]]:
    """The ids and labels of segments after `prefix`, and [start, end) of each run of targets."""
    ids = list(prefix)
    labels = [IGNORED] * len(ids)
    spans: list[tuple[int, int]] = []
    for segment in segments:
        piece = ids_of[segment.text, segment.has_control]
        if segment.ends_turn:
            piece = [*piece, eos]
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
