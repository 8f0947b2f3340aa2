"""A served model: its files, its engine, what clients may ask of it and within which bounds, and its cast."""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from messages.config.cast import Part, Spawn
from messages.config.written import Count, Seconds, Written
from messages.ids import Role, alias_of

Served = Literal["chat", "completions", "embeddings"]
"""An endpoint kind, by the last part of its path in OpenAI's API (chat/completions, completions, embeddings)."""


class Simulated(Written, kw_only=True):
    """How the simulated engine behaves: times in seconds, 0 for as fast as it can.

    `ttft` is the time to the first token for a prompt (plus `prefill_per_token` a token), `itl` between two tokens.
    `vocab_size` is read from the tokenizer unless set. `load` is how long loading takes. `dimensions` is the length of
    an encoder's vectors.
    """

    ttft: Annotated[float, Meta(ge=0)] = 0.02
    prefill_per_token: Annotated[float, Meta(ge=0)] = 0.0
    itl: Annotated[float, Meta(ge=0)] = 0.005
    load: Annotated[float, Meta(ge=0)] = 0.0
    vocab_size: Annotated[int, Meta(ge=2)] | None = None
    block_size: Annotated[int, Meta(ge=1)] = 16
    total_blocks: Annotated[int, Meta(ge=1)] = 65_536
    eos_every: Count = 0
    dimensions: Annotated[int, Meta(ge=1)] = 64


class Embedding(Written, kw_only=True):
    """What an embedding model's vectors bear.

    `dimensions` says whether the first numbers of a vector alone still mean something (a model that was trained so, "à
    la matryoshka"): `any` of them, only `whole` vectors, or a list of the lengths that do. `auto` goes by the model's
    config.json (`is_matryoshka`, `matryoshka_dimensions`, as SGLang does), which for many models says nothing: whole.
    """

    dimensions: Literal["auto", "any", "whole"] | list[Annotated[int, Meta(ge=1)]] = "auto"


class Probe(Written, kw_only=True):
    """Health probes of a model's engines: one token (or one vector) for one token, when a slot has long been idle.

    `idle` is how long, in seconds, `deadline` how long an answer may take before it counts as none. An engine that
    hangs while idle is found within the two together, where without probes the first request would find it. Probes
    every 10 seconds cost a fraction of a percent of a core (docs/probes.md has figures). Real work never waits for one.
    """

    enabled: bool = True
    idle: Seconds = 10.0
    deadline: Seconds = 30.0


class Limits(Written, kw_only=True):
    """Bounds of a processor: requests held at a closed gate, requests in flight, bytes and seconds of one.

    `timeout` is the deadline of a request that names none, in seconds, and the most that one may ask for;
    `retry_after` what a refused one is told to wait. `inputs` is how many texts one request for embeddings may have
    (OpenAI's API takes 2,048). `held_bytes` is how many bytes of bodies a door has in memory at most, from their
    arrival until they are prompts; of a body whose length HTTP does not announce, `body_bytes` count.
    """

    queued: Count = 1_000
    in_flight: Annotated[int, Meta(ge=1)] = 4_096
    body_bytes: Annotated[int, Meta(ge=1_024)] = 4_194_304
    timeout: Seconds = 600.0
    retry_after: Seconds = 2.0
    inputs: Annotated[int, Meta(ge=1)] = 2_048
    held_bytes: Annotated[int, Meta(ge=1_024)] = 268_435_456


class Model(Written, kw_only=True):
    """One served model: its files, its engine and its cast.

    `path` is a folder (from the configuration's folder, if relative) or a Hugging Face id, which is downloaded
    where it is not in the local cache. `tokenizer` is the folder or file with `tokenizer.json` where that is not in
    `path`. `chat_template` is a file with a Jinja template in place of the model's own. `reasoning_parser` (qwen3,
    gpt-oss) and `tool_call_parser` (qwen25, gpt-oss) read thinking and calls out of the text. `engine_tokenizer:
    false` spares the engine a tokenizer of its own; without it there are no grammars and no `min_tokens`. `text: true`
    leaves chat template and tokenising to the engine, for a model whose tokenizer only the engine knows: such a model
    serves chat alone, without `logprobs`, `logit_bias` and grammars (docs/api.md).
    `context_length` (tokens) bounds a request below what the model allows. `args` are SGLang's own arguments and
    `env` variables for every slot of the model, those of a part before them. `load_deadline` is in seconds; a
    download does not count. `alias` stands for the name in subjects and slots. A cast of processor and encoder
    makes an embedding model, one with decode a model that generates. `serves` lists the endpoint kinds that clients
    may use; left out, chat and completions, or embeddings. Token ids (kind `generate`, on NATS alone) are always
    taken by a model that generates.
    """

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    path: str | None = None
    alias: str | None = None
    engine: Literal["sglang", "simulated"] = "sglang"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokenizer: str | None = None
    engine_tokenizer: bool = True
    text: bool = False
    chat_template: str | None = None
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    context_length: Annotated[int, Meta(ge=1)] | None = None
    args: dict[str, Any] = {}
    env: dict[str, str] = {}
    serves: list[Served] | None = None
    embedding: Embedding = field(default_factory=Embedding)
    simulated: Simulated = field(default_factory=Simulated)
    limits: Limits = field(default_factory=Limits)
    probe: Probe = field(default_factory=Probe)
    load_deadline: Seconds = 600.0
    spawn: Spawn = "auto"
    cast: dict[Role, Part]

    @property
    def slug(self) -> str:
        """The alias as subjects and slots carry it."""
        return self.alias if self.alias is not None else alias_of(self.name)

    def spawn_of(self, role: Role) -> Spawn:
        """Who starts the slots of a role: as its part says, or else as the model says."""
        part = self.cast[role].spawn
        return self.spawn if part == "auto" else part

    @property
    def embeds(self) -> bool:
        """Whether this is an embedding model."""
        return "encoder" in self.cast

    @property
    def served(self) -> list[Served]:
        """The endpoint kinds that clients may use."""
        if self.serves is not None:
            return self.serves
        if self.embeds:
            return ["embeddings"]
        return ["chat"] if self.text else ["chat", "completions"]
