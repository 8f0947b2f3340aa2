"""What processors ask of GPU actors: one prompt to prefill, one to decode, and the claim that goes with it.

A prompt that is prefilled apart is told to both at the same moment: SGLang's prefill computes nothing before decode
has reserved room for the KV blocks. The two meet at the prefill actor's bootstrap address, in a room of their own.
Errors come back as headers (`messages.bus.ServiceError`), never as one of these.
"""

from msgspec import Struct


class Sampling(Struct, kw_only=True, omit_defaults=True):
    """How to choose tokens and when to stop, in SGLang's words; stop strings are the processor's and not in here."""

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


class Bootstrap(Struct, kw_only=True):
    """Where decode meets prefill, and the id of their one meeting (a number below 2**63)."""

    host: str
    port: int
    room: int


class Job(Struct, kw_only=True, omit_defaults=True):
    """One attempt of a request, for one actor.

    `prompt` is packed token ids (`codec.pack_tokens`); `generation` is the life that the sender means, 0 for any;
    `out` is the processor's incarnation, to which frames go; `ttl` is how long it may still take, in seconds: a
    span and not a time of day, because hosts' clocks differ.
    """

    request: str
    attempt: int
    out: str
    prompt: bytes
    sampling: Sampling
    ttl: float
    generation: int = 0
    bootstrap: Bootstrap | None = None


class Prefill(Job, kw_only=True, omit_defaults=True, tag="prefill"):
    """Compute the prompt's KV blocks and hand them to the decode actor in the bootstrap room."""


class Decode(Job, kw_only=True, omit_defaults=True, tag="decode"):
    """Generate; without a bootstrap, compute the prompt too."""


Work = Prefill | Decode


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
