"""A SentencePiece vocabulary as a Rust tokenizer: the same ids, in a file that others read.

Knows: how SentencePiece's byte-pair merging goes, and what the Rust library can say of it. Does not know transformers,
families or files. Which of two equal scores goes first is not always sayable, so each form is tried (`agrees`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from utils.pieces import BLANK, BYTE, MARK, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_BPE = 2  # of SentencePiece's kinds of model
_HARD = (
    "",
    " ",
    "   three, and a tail  ",
    "a  b   c    d" + " " * 37 + "e",
    "\n",
    "def f(x):\n    if x:\n\t\treturn  x\r\n\n\n",
    "样本，把这句话翻译成英文。　你好！",
    "🌏👩‍👩‍👧 é e\u0301 龘 \u200b \ufeff \x00\x7f",
    "aaaaaaaaaaaaa -------- ======= hahahahaha ababababa 1111111 。。。。。。",
    "<0x0A> <s></s><unk> <pad>",
)


def rust_form(
    model: bytes, names: Sequence[str], added: Mapping[int, Any], *, before: Sequence[str], after: Sequence[str]
) -> Tokenizer | None:
    """A Rust tokenizer for a SentencePiece model; None where the Rust library has no words for it.

    None for what is not byte-pair merging, changes texts, drops blanks or has no bytes for what is rare; and for a
    control token that is also what merging can give.

    Args:
        model: the bytes of the model.
        names: the name of each id, pieces first.
        added: id → an `AddedToken` that is looked for before SentencePiece sees a text; control tokens are `special`.
        before: names of what comes before a text.
        after: names of what comes behind it.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, normalizers
    from tokenizers.models import BPE

    found: Any = sentencepiece_model_pb2
    proto = found.ModelProto.FromString(model)
    pieces = list(proto.pieces)
    merged = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    taken = {pieces[i].piece for i in added if i < len(pieces)} | {token.content for token in added.values()}
    if not (_is_sayable(proto) and _is_spelt(merged) and merged.keys().isdisjoint(taken)):
        return None
    whole = {i for i, piece in enumerate(pieces) if piece.type == USER_DEFINED and i not in added}
    written = [MARK + pieces[i].piece if i in whole else name for i, name in enumerate(names)]
    vocabulary = {name: i for i, name in enumerate(written)}
    if len(vocabulary) < len(written):
        return None
    unknown = written[next(i for i, piece in enumerate(pieces) if piece.type == UNKNOWN)]
    made: Any = Tokenizer(
        BPE(vocab=vocabulary, merges=list(_merges(merged)), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    blank = BLANK if proto.normalizer_spec.add_dummy_prefix else ""
    made.normalizer = normalizers.Sequence(
        [
            *([normalizers.Prepend(blank)] if blank else []),
            # What is looked for is normalised too: the mark keeps the blank from it.
            *([normalizers.Replace(blank + MARK, "")] if whole else []),
            normalizers.Replace(" ", BLANK),
        ]
    )
    made.decoder = decoders.Sequence(
        [
            *([decoders.Replace(MARK, "")] if whole else []),
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if blank else []),
        ]
    )
    made.add_tokens([AddedToken(written[i], special=False, normalized=True) for i in sorted(whole)])
    for i in sorted(added):
        made.add_tokens([AddedToken(added[i].content, special=added[i].special, normalized=False)])
        if made.token_to_id(added[i].content) != i:
            return None
    made.post_processor = _frame(before, after, made)
    return made


def agrees(
    made: Tokenizer,
    ids: Callable[[str, bool], list[int]],
    text: Callable[[list[int]], str],
    pieces: Sequence[str],
) -> bool:
    """Whether a Rust form and the exact tokenizer give the same ids and texts for what is hard, and for texts of the
    vocabulary's pieces in many orders.

    Args:
        made: the Rust form; it is left as it came.
        ids: the exact ids of a text; with True, control tokens in it are text.
        text: the exact text of ids.
        pieces: the pieces by name.
    """
    controls = [token.content for token in made.get_added_tokens_decoder().values() if token.special]
    typed = [*_HARD, " ".join(controls), "".join(controls), *_shuffled(pieces)]
    rust: Any = made
    try:
        for literally in (True, False):
            rust.encode_special_tokens = literally
            found = [encoding.ids for encoding in rust.encode_batch(typed, add_special_tokens=False)]
            if found != [ids(sample, literally) for sample in typed]:
                return False
            if literally and rust.decode_batch(found, skip_special_tokens=False) != [text(row) for row in found]:
                return False
        return True
    finally:
        rust.encode_special_tokens = False


def _shuffled(pieces: Sequence[str]) -> list[str]:
    """The same texts each time. Pieces in any order make pairs that no training text had."""
    draw = random.Random(0)
    chosen = draw.sample(pieces, min(len(pieces), 12_000))
    return ["".join(chosen[i : i + 200]).replace(BLANK, " ") for i in range(0, len(chosen), 200)]


def _is_sayable(proto: Any) -> bool:
    trained, normaliser = proto.trainer_spec, proto.normalizer_spec
    kinds = [piece.type for piece in proto.pieces]
    return (
        trained.model_type == _BPE
        and trained.byte_fallback
        and kinds.count(BYTE) == 256
        and kinds.count(UNKNOWN) == 1
        and UNUSED not in kinds
        and not trained.treat_whitespace_as_suffix
        and not normaliser.precompiled_charsmap
        and not normaliser.remove_extra_whitespaces
        and normaliser.escape_whitespaces
    )


def _is_spelt(merged: Collection[str]) -> bool:
    """Each character of each piece is one: SentencePiece also merges characters that are none, the Rust library not."""
    return set().union(*merged) <= set(merged)


def _merges(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The pairs that make a piece, best first.

    Of pairs with one score SentencePiece merges the leftmost; here each has a rank of its own. The longest first is the
    same for runs of one character, which grow from the left.
    """
    for piece in sorted(scores, key=lambda text: (-scores[text], -len(text))):
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                yield left, right


def _frame(before: Sequence[str], after: Sequence[str], tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    def around(name: str, kind: int) -> list[str]:
        return [*(f"{token}:{kind}" for token in before), f"${name}:{kind}", *(f"{token}:{kind}" for token in after)]

    return TemplateProcessing(
        single=around("A", 0),
        pair=[*around("A", 0), *around("B", 1)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
    )
