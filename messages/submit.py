"""What clients send and what they get back: the protocol of the submit subjects, and the body of the HTTP door.

One request, one life: `Accepted`, then any number of `Delta`, then exactly one last word, `Done` or `Error`.
The fields of `Chat` and `Completion` are those of OpenAI's API, with the extensions that SGLang's users know
(top_k, min_p, ignore_eos, ...). Unknown fields are refused by name.
"""

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

SCHEMA = 1

Positive = Annotated[int, Meta(ge=1, le=1 << 31)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 32)]
Text = Annotated[str, Meta(min_length=1)]
Top = Annotated[int, Meta(ge=0, le=20)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Bias = Annotated[float, Meta(ge=-100, le=100)]

NOT_HERE: Final[dict[str, str]] = {
    "audio": "answers are text",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "suffix": "text is continued at its end only",
    "web_search_options": "nothing is searched",
    "beam_width": "beams cannot be had; n samples several choices",
    "use_beam_search": "beams cannot be had; n samples several choices",
    "guided_json": "use response_format",
    "guided_regex": "use regex",
    "guided_grammar": "use ebnf",
    "json_schema": "use response_format",
    "structural_tag": "use response_format, regex or ebnf",
    "structured_outputs": "use response_format, regex or ebnf",
    "prompt_logprobs": "use echo and logprobs",
    "return_tokens_as_token_ids": "the kind 'generate' answers in token ids",
    "lora_path": "adapters cannot be had",
    "thinking": "use reasoning_effort or chat_template_kwargs",
}
"""Fields that others take and we refuse, each with what to do instead, or why."""

MOST_CHOICES: Final = 128
"""How many choices one request may have, counted over all its prompts."""

IGNORED: Final[dict[str, str]] = {
    "user": "nobody is told apart",
    "safety_identifier": "nobody is told apart",
    "store": "nothing is kept",
    "metadata": "nothing is kept",
    "service_tier": "there is one",
    "prompt_cache_key": "the prefix cache goes by the tokens",
    "prompt_cache_retention": "what the prefix cache holds is held for as long as there is room",
    "prediction": "nothing is guessed ahead; the answer is the same",
    "verbosity": "no template knows it",
}
"""Fields of OpenAI's API that are taken and change nothing, each with the reason."""


class Resume(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Go on with a request whose processor is gone: the last attempt seen, and what was received from it.

    A request with several choices says in `choices` what was received of each, and leaves `token_ids` empty.
    """

    attempt: Annotated[int, Meta(ge=0, lt=1 << 31)]
    token_ids: list[TokenId]
    choices: Annotated[list[list[TokenId]], Meta(max_length=128)] | None = None


class JsonSchema(Struct, kw_only=True):
    """A JSON schema with its name; `strict` changes nothing: a schema always binds."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True, forbid_unknown_fields=True):
    """What form the answer must have: free text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Asked(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every kind of request may say: who it is, how long it may take, and how to sample."""

    v: int = SCHEMA
    model: str = ""
    id: str = ""
    timeout: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    resume: Resume | None = None

    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: Seed | None = None
    logit_bias: Annotated[dict[str, Bias], Meta(max_length=1_024)] | None = None
    regex: Text | None = None
    ebnf: Text | None = None


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a stream ends: whether a chunk with the usage comes last. Chunks are never padded (`include_obfuscation`)."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextPart(Struct, tag="text", tag_field="type", kw_only=True):
    """One piece of a message's content."""

    text: str


class FunctionCall(Struct, kw_only=True, omit_defaults=True):
    """A call of a tool, as a model made it; `arguments` is JSON text."""

    name: str | None = None
    arguments: str = ""


class ToolCall(Struct, kw_only=True, omit_defaults=True):
    """One tool call, or (in a delta) the next piece of the call with this index."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionCall


class Message(Struct, kw_only=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(Struct, kw_only=True, omit_defaults=True):
    """A tool that the model may call; `parameters` is a JSON schema."""

    name: Text
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    """A tool in the form in which OpenAI's API names it."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, kw_only=True):
    """The name of one tool."""

    name: Text


class NamedTool(Struct, kw_only=True):
    """The one tool that the model must call."""

    function: NamedFunction
    type: Literal["function"] = "function"


class Chat(Asked, kw_only=True, forbid_unknown_fields=True):
    """A conversation to be continued; kind `chat`, and the body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: Positive | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    user: str | None = None
    n: Choices | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    modalities: list[Literal["text"]] | None = None
    safety_identifier: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prediction: dict[str, Any] | None = None
    verbosity: str | None = None


class Completion(Asked, kw_only=True, forbid_unknown_fields=True):
    """A text to be continued, or several; kind `completion`, and the body of POST /v1/completions.

    `prompt` is a text, token ids, a list of texts, or a list of lists of token ids.
    """

    prompt: str | list[str | TokenId | list[TokenId]]
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    echo: bool = False
    logprobs: Top | None = None
    response_format: ResponseFormat | None = None


class Generate(Asked, kw_only=True, forbid_unknown_fields=True):
    """Token ids to be continued, answered in token ids alone; kind `generate`."""

    token_ids: Annotated[list[TokenId], Meta(min_length=1)]
    n: Choices | None = None
    logprobs: Top | None = None
    response_format: ResponseFormat | None = None


Request = Chat | Completion | Generate


class Usage(Struct, kw_only=True, omit_defaults=True):
    """How many tokens a request took; `cached_tokens` of the prompt came out of the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Accepted(Struct, kw_only=True, tag="accepted"):
    """First answer: a processor has the request and will say a last word on it."""

    id: str
    attempt: int
    owner: str


class Likely(Struct, kw_only=True):
    """One token that might have come, with the natural logarithm of its probability: None for a prompt's first.

    `bytes` is what it adds to the text, in UTF-8: nothing for a special token that the text leaves out.
    """

    id: int
    token: str
    logprob: float | None
    bytes: list[int]


class Logprob(Likely, kw_only=True):
    """A token that came, and the likeliest ones in its place, likeliest first, as many as were asked for."""

    top_logprobs: list[Likely]


class Delta(Struct, kw_only=True, tag="delta", omit_defaults=True):
    """What came next.

    `position` counts the output tokens before this delta; `text` may lag behind `token_ids`, because half a
    character, or what may yet become a stop string, is held back. `index` is the choice, where there are several;
    each has positions of its own. `logprobs` are those of `token_ids`, where they were asked for; a token that ended
    the answer has none, and with an echo those of the prompt come first.
    """

    id: str
    attempt: int
    position: int
    token_ids: list[int]
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    index: int = 0
    logprobs: list[Logprob] = []


class Done(Struct, kw_only=True, tag="done", omit_defaults=True):
    """Last word of a request that ended well; `resumed` says that a sampled stream was continued elsewhere.

    With several choices `finish_reasons` has one for each, and `usage` counts all of them and each prompt once.
    """

    id: str
    attempt: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    resumed: bool = False
    finish_reasons: list[Literal["stop", "length", "tool_calls"]] = []


class Error(Struct, kw_only=True, tag="error", omit_defaults=True):
    """Last word of a request that did not end well.

    `code`: 400 bad request, 404 no such model, 408 deadline, 409 the id is taken, 413 too large, 429 full,
    499 cancelled, 500 engine, 503 gate closed or nobody there. `retry_after` is in seconds.
    """

    id: str
    code: int
    message: str
    attempt: int = 0
    param: str | None = None
    retry_after: float | None = None


Answer = Accepted | Delta | Done | Error
