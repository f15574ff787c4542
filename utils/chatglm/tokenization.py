"""ChatGLM-6B's tokenizer, on the file that its checkpoints bring.

Knows: what that model makes of layout, and what it puts behind a prompt. Does not know SentencePiece (`utils.pieces`)
or the model. The facts are those that published copies of the checkpoint's own tokenizer code agree on; its vocabulary
was not at hand.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from utils.piece_tokenizer import PieceTokenizer

MOST_BLANKS = 80
BLANKS = MappingProxyType({" " * n: f"<|blank_{n}|>" for n in range(2, MOST_BLANKS + 1)})
CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # SentencePiece's kinds of piece


class ChatGLMTokenizer(PieceTokenizer):
    """Text, then `[gMASK] <sop>`: so ends a prompt, and `<eop>` ends an answer.

    Newlines, tabs and runs of 2 to 80 blanks are pieces of their own. Ids are the pieces' plus `num_image_tokens`:
    20000 for the first release (its vocabulary is 150528), 0 for the later ones (130528), which say so.

    Args:
        vocab_file: `ice_text.model`.
        kwargs: of transformers' `PreTrainedTokenizer`, and `num_image_tokens`.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}  # noqa: RUF012 — transformers' own declaration
    roles = MappingProxyType(
        {
            "bos_token": "<sop>",
            "eos_token": "<eop>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "[MASK]",
            "gmask_token": "[gMASK]",
            "end_token": "</s>",
        }
    )
    control_pieces = ("<pad>", *CONTROLS)
    after_text = ("[gMASK]", "<sop>")
    layout = MappingProxyType({"\n": "<n>", "\t": "<|tab|>", **BLANKS})

    def _first_id(self, options: dict[str, Any]) -> int:
        for name in ("do_lower_case", "remove_space"):
            if options.get(name):
                raise ValueError(f"tokenizer_config.json: {name} is true, but this tokenizer changes no text")
        # The first release called the end of an answer eop_token, and had </s> as EOS, which it never wrote.
        for tokens in (options, options.get("model_specific_special_tokens") or {}):
            if end := tokens.pop("eop_token", None):
                options["eos_token"] = end
        return options.setdefault("num_image_tokens", 20000)

    def _model(self, file: bytes) -> bytes:
        """The first release's file lacks the pieces from `[MASK]` on, which its code added: these, in this order."""
        from transformers.convert_slow_tokenizer import import_protobuf

        sentencepiece: Any = import_protobuf()
        proto = sentencepiece.ModelProto.FromString(file)
        there = {piece.piece for piece in proto.pieces}
        if "[gMASK]" in there:
            return file
        added = [(text, _CONTROL) for text in CONTROLS]
        added += [(text, _USER_DEFINED) for text in ("<|tab|>", *BLANKS.values())]
        added += [(f"<0x{byte:02X}>", _BYTE) for byte in range(256)]
        if doubled := there.intersection(text for text, _ in added):
            raise ValueError(f"ice_text.model: it has {sorted(doubled)[0]!r} but no '[gMASK]'; download it again")
        for text, kind in added:
            proto.pieces.add(piece=text, score=0.0, type=kind)
        proto.trainer_spec.byte_fallback = True
        return proto.SerializeToString()
