"""Tokenizers of transformers' kind that give SentencePiece's own ids: an exact one, and the same in Rust.

Knows: transformers' tokenizers, control tokens, and what a family may put around a text. Does not know any family
(`utils.slow_tokenizers`, `utils.chatglm.tokenization`), or SentencePiece (`utils.pieces`, `utils.rust_pieces`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from utils.pieces import Pieces, read_model
from utils.rust_pieces import agrees, rust_form

SAVED_AS = ("PreTrainedTokenizerFast", PreTrainedTokenizerFast.__name__)
"""The class that the configuration of a saved Rust form names: as we write it, and as transformers does."""
SENTENCEPIECE_ROLES = MappingProxyType({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


class Piece(str):
    """A token by name that remembers its id: a vocabulary may have a piece that reads like a control token."""

    id: int

    def __new__(cls, name: str, token_id: int) -> Piece:
        made = super().__new__(cls, name)
        made.id = token_id
        return made


class PieceTokenizer(PreTrainedTokenizer):
    """A tokenizer whose ids are SentencePiece's own. A family is the differences below.

    `split_special_tokens=True` keeps control tokens that stand in a text as text. `decode` is exact, as far as the
    vocabulary's normaliser leaves a text alone.

    Args:
        vocab_file: the SentencePiece model.
        kwargs: of transformers' `PreTrainedTokenizer`.

    Raises:
        ValueError: no such file, or none of SentencePiece's.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 — transformers' own declaration
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    roles: ClassVar[Mapping[str, str]] = SENTENCEPIECE_ROLES
    """Role → token, where the checkpoint's configuration says nothing."""
    control_pieces: ClassVar[Sequence[str]] = ()
    """Pieces that are control tokens, whatever kind of piece the vocabulary says they are."""
    after_pieces: ClassVar[Sequence[str]] = ()
    """Control tokens whose ids follow those of the pieces."""
    before_text: ClassVar[Sequence[str]] = ()
    """What the model expects before a text."""
    after_text: ClassVar[Sequence[str]] = ()
    """What the model expects behind a text."""
    begins_with_bos: ClassVar[bool] = False
    """BOS comes before a text, where the checkpoint's configuration says nothing."""
    layout: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What is written in a text → the piece that stands for it."""
    chat_form: ClassVar[str | None] = None
    """The chat template (Jinja), where the checkpoint brings none."""

    def __init__(self, vocab_file: str | None = None, **kwargs: Any) -> None:
        if vocab_file is None:
            name = kwargs.get("name_or_path") or "the checkpoint"
            raise ValueError(f"{name}: {self.vocab_files_names['vocab_file']} is missing; download it again")
        self._path, self._file = vocab_file, read_model(Path(vocab_file))
        self._patterns: dict[tuple[bool, int], re.Pattern[str]] = {}
        self._offset = self._first_id(kwargs)
        kwargs.pop("auto_map", None)  # it names the code that came with the checkpoint
        kwargs = {**self.roles, **{name: value for name, value in kwargs.items() if value is not None}}
        kwargs.setdefault("chat_template", self.chat_form)
        self.add_bos_token = kwargs.setdefault("add_bos_token", self.begins_with_bos)
        controls = self._load(self._model(self._file), kwargs.pop("added_tokens_decoder", {}))
        super().__init__(added_tokens_decoder=controls, special_tokens_pattern="prefix_suffix", **kwargs)

    def _first_id(self, options: dict[str, Any]) -> int:
        """The id of the first piece; may take options of its own out of `options`."""
        return 0

    def _model(self, file: bytes) -> bytes:
        """The SentencePiece model, from what the checkpoint's file holds."""
        return file

    def _load(self, model: bytes, declared: Mapping[int, Any]) -> dict[int, AddedToken]:
        """Sets up the pieces and their names; returns the control tokens by id, with what the checkpoint declares."""
        plain = Pieces(model)
        of_pieces = {i: plain.texts[i] for i in [*plain.controls, plain.unknown]}
        of_pieces |= {plain.ids[text]: text for text in self.control_pieces if text in plain.ids}
        of_pieces |= {len(plain) + k: text for k, text in enumerate(self.after_pieces)}
        controls = {i + self._offset: _control(text) for i, text in of_pieces.items()} | dict(declared)
        special = [i - self._offset for i, token in controls.items() if token.special]
        guarded = [plain.texts[i] for i in special if 0 <= i < len(plain)]
        self.pieces = Pieces(model, layout=self.layout, guarded=guarded)
        taken = {str(token) for token in controls.values()}
        names = [f"<image_{i}>" for i in range(self._offset)]
        names += [f"<piece_{i}>" if text in taken else text for i, text in enumerate(plain.texts)]
        self._names = [*names, *self.after_pieces]
        for i, token in controls.items():
            if i < len(self._names):
                self._names[i] = str(token)
        self._numbers = {name: i for i, name in enumerate(self._names)}
        return controls

    @property
    def vocab_size(self) -> int:
        """Pieces and control tokens, without what was added later."""
        return len(self._names)

    def get_vocab(self) -> dict[str, int]:
        """Every token by name. A piece that reads like a control token is listed by its number."""
        return {**self._numbers, **self.added_tokens_encoder}

    @property
    def definition(self) -> str:
        """Hex sha256 of all that decides ids: the file, what is added to it, and what stands around a text."""
        added = {i: (token.content, token.special) for i, token in self.added_tokens_decoder.items()}
        rest = repr([type(self).__name__, self._offset, added, self.prefix_tokens, self.suffix_tokens])
        return hashlib.sha256(self._file + rest.encode()).hexdigest()

    @property
    def prefix_tokens(self) -> list[int]:
        """The ids that come before a text."""
        names = self.before_text or ([self.bos_token] if self.add_bos_token and self.bos_token else [])
        return [self._added_tokens_encoder[str(name)] for name in names]

    @property
    def suffix_tokens(self) -> list[int]:
        """The ids that come behind a text; EOS is none of them."""
        return [self._added_tokens_encoder[name] for name in self.after_text]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The tokens of `text` by name; each knows its id (`Piece`)."""
        literally = kwargs.get("split_special_tokens", self.split_special_tokens)
        return [Piece(self._convert_id_to_token(i), i) for i in self._ids(text, literally)]

    def _ids(self, text: str, literally: bool) -> list[int]:
        # The control tokens are taken out first: nothing that is left of them is meant, but layout may be.
        encode = self.pieces.encode if self.layout and not literally else self.pieces.encode_literally
        ids: list[int] = []
        # Every second run is a token that was added.
        for at, run in enumerate(self._whole(literally).split(text)):
            ids += [self._added_tokens_encoder[run]] if at % 2 else [i + self._offset for i in encode(run)]
        return ids

    def _whole(self, literally: bool) -> re.Pattern[str]:
        """Finds the tokens that are looked for before SentencePiece sees a text; with `literally`, no control token."""
        key = (literally, len(self._added_tokens_decoder))
        if key not in self._patterns:
            tokens = [t.content for t in self._added_tokens_decoder.values() if not (literally and t.special)]
            longest_first = sorted(tokens, key=len, reverse=True)
            self._patterns[key] = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        return self._patterns[key]

    def _convert_token_to_id_with_added_voc(self, token: str) -> Any:
        return token.id if isinstance(token, Piece) else super()._convert_token_to_id_with_added_voc(token)

    def _convert_token_to_id(self, token: str) -> Any:
        return self._numbers.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._added_tokens_decoder:
            return self._added_tokens_decoder[index].content
        return self._names[index] if index < len(self._names) else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens by name."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,  # a tokenizer that is exact has nothing to clean up
        **kwargs: Any,
    ) -> str:
        skipped = self._skipped() if skip_special_tokens else frozenset[int]()
        names = {
            i - self._offset: "" if i in skipped else token.content for i, token in self._added_tokens_decoder.items()
        }
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.pieces.decode([i - self._offset for i in ids], names)

    def _skipped(self) -> frozenset[int]:
        return frozenset({*self.all_special_ids, *(i for i, t in self._added_tokens_decoder.items() if t.special)})

    def rust(self) -> Any:
        """The same in Rust; None where it would give other ids."""
        if self._offset or self.layout:
            return None
        before, after = (self.convert_ids_to_tokens(ids) for ids in (self.prefix_tokens, self.suffix_tokens))
        made = rust_form(self._file, self._names, self.added_tokens_decoder, before=before, after=after)
        if made is None or not agrees(made, self._ids, self._decode, self.pieces.texts):
            return None
        return rust_tokenizer(
            made, self, add_bos_token=None if self.before_text else self.add_bos_token, vocab_file=self._path
        )

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        _keep_choice(Path(file_names[0]), self.add_bos_token)
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Writes the checkpoint's own file, byte for byte; returns its path."""
        name = self.vocab_files_names["vocab_file"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        path.write_bytes(self._file)
        return (str(path),)


def _keep_choice(config: Path, add_bos_token: bool) -> None:
    """Writes into a saved configuration whether BOS is put, which transformers leaves out."""
    saved = json.loads(config.read_text(encoding="utf-8"))
    text = json.dumps({**saved, "add_bos_token": add_bos_token}, indent=2, sort_keys=True, ensure_ascii=False)
    config.write_text(text + "\n", encoding="utf-8")


def _control(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


class RustTokenizer(PreTrainedTokenizerFast):
    """A Rust form as transformers has it. What it saves, plain transformers loads, to the same ids.

    Unlike the exact one, it writes the blank behind a control token when it decodes.
    """

    padding_side = "left"

    def update_post_processor(self) -> None:
        """What comes before a text is made anew, with BOS or without; what is no BOS, such as `[gMASK] sop`, stays."""
        if self._knows_bos_only:
            super().update_post_processor()

    @property
    def _knows_bos_only(self) -> bool:
        processor: Any = self.backend_tokenizer.post_processor
        frame = json.loads(processor.__getstate__())["special_tokens"]
        return set(frame) <= {str(self.bos_token), str(self.eos_token)}

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """No: transformers would take its own class for the checkpoint's file."""
        return False

    def _save_pretrained(self, save_directory: Any, file_names: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        """Writes the checkpoint's own file too, where it still is: converters to other formats want it."""
        if self._knows_bos_only:
            _keep_choice(Path(file_names[0]), self.add_bos_token)
        source, target = Path(getattr(self, "vocab_file", "")), Path(save_directory) / "tokenizer.model"
        if source.is_file() and not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
            file_names = (*file_names, str(target))
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)


# The name under which it is saved. transformers 5 would write another, which transformers 4 and servers on it lack.
RustTokenizer.__name__ = SAVED_AS[0]


def rust_tokenizer(made: Tokenizer, like: Any, *, add_bos_token: bool | None, vocab_file: str) -> RustTokenizer:
    """A Rust form for transformers.

    Args:
        made: the Rust form.
        like: the tokenizer whose control tokens, chat template and settings it takes.
        add_bos_token: BOS comes before a text; None: something else does.
        vocab_file: the checkpoint's own file.
    """
    return RustTokenizer(
        tokenizer_object=made,
        **like.special_tokens_map,
        **({} if add_bos_token is None else {"add_bos_token": add_bos_token}),
        extra_special_tokens=like.extra_special_tokens,
        vocab_file=vocab_file,
        name_or_path=like.name_or_path,
        chat_template=like.chat_template,
        padding_side=like.padding_side,
        truncation_side=like.truncation_side,
        model_max_length=like.model_max_length,
        model_input_names=like.model_input_names,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """A family's tokenizer in Rust where that gives the same ids, else the exact one."""

    exact: type[PieceTokenizer]

    def from_pretrained(self, name: str | Path, **options: Any) -> Any:
        """`name` is a hub id or a directory, also one that the tokenizer was saved to.

        Args:
            options: of transformers' `from_pretrained`; control tokens by role, where the checkpoint has none.

        Raises:
            ValueError: no `tokenizer.model`, or none of SentencePiece's.
            OSError: no such checkpoint.
        """
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        known = {key: value for key, value in options.items() if key in ("revision", "local_files_only")}
        declared = get_tokenizer_config(name, **known)
        if declared.get("tokenizer_class") in SAVED_AS:
            made = RustTokenizer.from_pretrained(name, **options)
            if "add_bos_token" in declared:  # transformers reads what comes before a text, but not that name of it
                made.add_bos_token = declared["add_bos_token"]
            return made
        exact = self.exact.from_pretrained(name, **options)
        return exact.rust() or exact
