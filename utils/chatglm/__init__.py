"""ChatGLM-6B, native: the first generation, whose published code no longer runs.

Knows: the architecture, its configuration keys, its tensor names and its tokenizer. Does not know where a checkpoint is
or how it is trained. Importing a name imports torch and transformers, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.chatglm.configuration import ChatGLMConfig
    from utils.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel
    from utils.chatglm.tokenization import ChatGLMTokenizer

_MODULES = {
    "ChatGLMConfig": "configuration",
    "ChatGLMModel": "modeling",
    "ChatGLMForConditionalGeneration": "modeling",
    "ChatGLMTokenizer": "tokenization",
}

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMModel", "ChatGLMTokenizer"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"utils.chatglm has no {name}")
    from importlib import import_module

    return getattr(import_module(f"utils.chatglm.{_MODULES[name]}"), name)
