"""What processors ask of GPU actors: prompts to prefill, to decode and to encode, and the claim on a request.

A prompt that is prefilled apart is told to both at the same moment: SGLang's prefill computes nothing before decode
has reserved room for the KV blocks. The two meet at the prefill actor's bootstrap address, in a room of their own.
Errors come back as headers (`messages.bus.ServiceError`), never as one of these.
"""

from typing import Any

from msgspec import Struct


class Sampling(Struct, kw_only=True, omit_defaults=True):
    """How to choose tokens and when to stop, in SGLang's words; stop strings are the processor's and not in here.

    `logit_bias` is added to the logits of token ids. `logprobs` asks for the log-probability of each token and for so
    many of the likeliest in its place; None asks for none. `prompt_logprobs` asks for those of the prompt as well. At
    most one of `json_schema` (as JSON text), `regex` and `ebnf` says what the text must be like; an engine without
    grammars refuses them.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    seed: int | None = None
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    prompt_logprobs: bool = False

    @property
    def grammar(self) -> str | None:
        """The field that says what the text must be like, if one does."""
        for name in ("json_schema", "regex", "ebnf"):
            if getattr(self, name) is not None:
                return name
        return None


class Bootstrap(Struct, kw_only=True):
    """Where decode meets prefill, and the id of their one meeting (a number below 2**63).

    `generation` is prefill's, by which its lives are told apart where they have the same address; 0 for no one's.
    """

    host: str
    port: int
    room: int
    generation: int = 0


class Conversation(Struct, kw_only=True, omit_defaults=True):
    """A chat for an engine that has template and tokenizer itself (`text: true` in the configuration).

    `messages` and `tools` are as clients write them, contents of calls as JSON text; `words` are the template's own.
    `marks` are special tokens that the text shows even with `skip_special_tokens`.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    words: dict[str, Any] = {}
    skip_special_tokens: bool = True
    marks: list[str] = []


class Job(Struct, kw_only=True, omit_defaults=True):
    """One attempt of a request, for one actor.

    `prompt` is packed token ids (`codec.pack_tokens`); `generation` is the life that the sender means, 0 for any;
    `out` is the processor's incarnation, to which frames go; `ttl` is how long it may still take, in seconds: a
    span and not a time of day, because hosts' clocks differ. With a `chat`, `prompt` is what comes after it: the tokens
    of earlier attempts. Prefill and decode both render it, and each gets the same ids: rendering is a function of it.
    """

    request: str
    attempt: int
    out: str
    prompt: bytes
    sampling: Sampling
    ttl: float
    generation: int = 0
    bootstrap: Bootstrap | None = None
    chat: Conversation | None = None


class Prefill(Job, kw_only=True, omit_defaults=True, tag="prefill"):
    """Compute the prompt's KV blocks and hand them to the decode actor in the bootstrap room."""


class Decode(Job, kw_only=True, omit_defaults=True, tag="decode"):
    """Generate; without a bootstrap, compute the prompt too."""


class Encode(Struct, kw_only=True, omit_defaults=True, tag="encode"):
    """One attempt of a part of a request for embeddings, for one encoder.

    `request` is the request's id, "/" and the part's number. `prompt` is the packed token ids of all inputs, one after
    the other, `lengths` how many tokens each input has. `dimensions` asks for the first so many numbers of each vector,
    0 for all. The vectors come in frames, as `frames.Item.tokens`: packed 32-bit floats (`embed.pack_floats`) in the
    order of the inputs, `position` counting the floats before. The finish's reason is "encoded". The other fields are
    those of `Job`.
    """

    request: str
    attempt: int
    out: str
    prompt: bytes
    lengths: list[int]
    ttl: float
    generation: int = 0
    dimensions: int = 0


Work = Prefill | Decode | Encode


class Accept(Struct, kw_only=True):
    """The answer to work: this incarnation owns the attempt now and will finish it by a frame."""

    request: str
    attempt: int
    by: str


class Own(Struct, kw_only=True):
    """A processor's claim on a request; the owner of a lower attempt, or of the same in a later incarnation, aborts."""

    request: str
    attempt: int
    owner: str
