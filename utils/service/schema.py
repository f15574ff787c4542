"""What the API takes and gives, field by field: OpenAI's names, and those that vLLM and others added.

Knows: names, types and bounds. Does not know models, prompts or HTTP. A field that is not here is refused, and so is
one of OpenAI's that would change the answer and is not supported: it may only say that it is off.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

LONGEST_STOP = 256
"""Characters of a text that ends an answer: the end of the answer is compared with it at every token."""
MOST_STOPS = 4
SEED = 2**63
_OFF: JsonDict = {"x-unsupported": True}

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Zero = Annotated[float | None, Field(ge=0, le=0, json_schema_extra=_OFF)]
NoList = Annotated[list[Any] | None, Field(max_length=0, json_schema_extra=_OFF)]
NoObject = Annotated[dict[str, Any] | None, Field(max_length=0, json_schema_extra=_OFF)]
No = Annotated[Literal[False] | None, Field(json_schema_extra=_OFF)]
Nothing = Annotated[None, Field(json_schema_extra=_OFF)]


class Fields(BaseModel):
    """Strict: no unknown fields, no numbers as text, nothing that is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(Fields):
    """Of a streamed answer."""

    include_usage: bool | None = Field(None, description="a last piece with the numbers of tokens, before [DONE]")
    include_obfuscation: bool | None = Field(None, description="taken, and without effect")


class Decoding(Fields):
    """What both kinds of completions take."""

    model: str | None = Field(None, description="an id of /v1/models; the first adapter, if left out")
    stream: bool | None = Field(None, description="pieces as server-sent events, as they are decoded")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128, description="answers to each prompt, each with a seed of its own")
    stop: Stop | list[Stop] | None = Field(
        None, description=f"a text that ends the answer and is not part of it, or a list of up to {MOST_STOPS}"
    )
    seed: int | None = Field(None, ge=-SEED, lt=SEED, description="of the sampling; left out, each time another")
    max_tokens: Count | None = Field(None, description="the longest answer, in tokens")
    temperature: float | None = Field(None, ge=0, le=2, description="1 if left out; 0: the likeliest token each time")
    top_p: float | None = Field(None, ge=0, le=1, description="1 if left out")
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="draw from the k likeliest tokens; -1, 0: from all")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="1 (off) if left out")
    no_repeat_ngram_size: int | None = Field(None, ge=0, lt=2**31, description="0 (off) if left out")
    stop_token_ids: list[Token] | None = Field(
        None, max_length=1024, description="ids that end an answer: those that the model ends answers with, or none"
    )
    return_token_ids: bool | None = Field(None, description="also the ids of prompts and answers, as vLLM gives them")
    # Without effect on an answer.
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    # Only to say that they are off.
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: NoObject = None


class TextPart(Fields):
    """A piece of a message."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class Asking(Fields):
    """What the user, or whoever set the model up, says."""

    role: Literal["system", "developer", "user"]
    content: Content


class Answering(Fields):
    """What the model said, as a reply of this API has it."""

    role: Literal["assistant"]
    content: Content
    refusal: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    annotations: NoList = None
    tool_calls: NoList = None


class TextFormat(Fields):
    """The one form that answers have."""

    type: Literal["text"]


class ChatRequest(Decoding):
    """A conversation that ends with the user's message."""

    messages: list[Annotated[Asking | Answering, Field(discriminator="role")]] = Field(
        min_length=1, max_length=4096, description="a system message if there is one, then user and assistant in turn"
    )
    max_completion_tokens: Count | None = Field(None, description="the newer name of max_tokens")
    store: No = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    modalities: Annotated[list[Literal["text"]] | None, Field(json_schema_extra=_OFF)] = None
    response_format: Annotated[TextFormat | None, Field(json_schema_extra=_OFF)] = None
    logprobs: No = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=0, json_schema_extra=_OFF)] = None
    tools: NoList = None
    tool_choice: Annotated[Literal["none", "auto"] | None, Field(json_schema_extra=_OFF)] = None
    functions: NoList = None
    function_call: Annotated[Literal["none", "auto"] | None, Field(json_schema_extra=_OFF)] = None
    audio: Nothing = None
    moderation: Nothing = None
    reasoning_effort: Annotated[Literal["none"] | None, Field(json_schema_extra=_OFF)] = None
    verbosity: Annotated[Literal["medium"] | None, Field(json_schema_extra=_OFF)] = None
    web_search_options: Nothing = None


class TextRequest(Decoding):
    """A prompt that is continued as it is, without a template."""

    prompt: str | Annotated[list[str] | list[Token] | list[list[Token]], Field(min_length=1)] = Field(
        description="a text, token ids, or a list of either"
    )
    split_special_tokens: bool | None = Field(
        None, description="control tokens in a text stay text; left out, they are meant, as other servers have it"
    )
    best_of: int | None = Field(None, ge=1, le=128, description="as many as n", json_schema_extra=_OFF)
    echo: No = None
    logprobs: Nothing = None
    suffix: Annotated[str | None, Field(max_length=0, json_schema_extra=_OFF)] = None


class LegacyRequest(Fields):
    """What the original's POST / took."""

    prompt: str


@functools.cache
def known_fields() -> dict[str, str]:
    """Fields of requests, with what is said of them."""
    fields = {**ChatRequest.model_fields, **TextRequest.model_fields}
    return {name: field.description or "" for name, field in fields.items()}


def is_off(name: str) -> bool:
    """Whether a field may only say that it is off."""
    return any(name in each.model_fields and _is_off(each.model_fields[name]) for each in (ChatRequest, TextRequest))


def _is_off(field: Any) -> bool:
    return bool(field.json_schema_extra) and "x-unsupported" in field.json_schema_extra


class Usage(BaseModel):
    """Tokens; of several answers to a prompt, the prompt is counted once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


Finish = Literal["stop", "length"]


class ChatMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


AnswerIds = Annotated[list[int] | None, Field(description="of the answer, with what ended it; if they are wanted")]
PromptIds = Annotated[list[int] | None, Field(description="of the prompt; if they are wanted")]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: Finish
    token_ids: AnswerIds = None


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: PromptIds = None


class TextChoice(BaseModel):
    """One answer; those to the first prompt come first."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: Finish
    token_ids: AnswerIds = None
    prompt_token_ids: PromptIds = None


class TextCompletion(BaseModel):
    """Continuations of prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    """An adapter, or the base without one."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Which there are; the first one answers where a request names none."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class LegacyAnswer(BaseModel):
    """What the original's GET /query/{query} gave."""

    query: str
    answer: str
    time: float = Field(description="seconds")


class LegacyResponse(BaseModel):
    """What the original's POST / gave."""

    response: str
    status: Literal[200] = 200
    time: float = Field(description="seconds")


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorForm(BaseModel):
    """Every status from 400 on has this body."""

    error: ErrorDetail
