"""The configuration of a cluster: YAML into typed structs, with errors that say where, what and what would be right."""

import difflib
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from messages.ids import ROLES, Role, Slot, alias_of, check_token
from messages.logs import Format, Level

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=0)]
Port = Annotated[int, Meta(ge=0, lt=65_536)]

Served = Literal["chat", "completions", "embeddings"]
"""An endpoint kind, by the last part of its path in OpenAI's API (chat/completions, completions, embeddings)."""

Spawn = Literal["auto", "prefork", "plain", "external"]
"""Who starts a slot, and how: the supervisor by forking a warm parent or plainly, or another manager."""

UNDERSTUDIED: Final[tuple[Role, ...]] = ("prefill", "decode", "encoder")
"""Roles that may have understudies: those whose engines take long to load."""

PUBLISHER_LOAD: Final = 60.0
PUBLISHER_DRAIN: Final = 10.0
SCHEMES: Final = ("nats", "tls")
"""What a NATS URL may begin with. nats-py also knows ws:// and wss://, which nothing here needs or tests."""


class ConfigError(Exception):
    """A configuration that cannot be used; the text says where, what is wrong and what would be right."""


class Written(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of all that people write: every field by name, unknown fields refused."""


class Tls(Written, kw_only=True):
    """Files for TLS to NATS: the authority to trust, and a certificate and key of our own."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class Nats(Written, kw_only=True):
    """Which NATS server to use; without a URL the supervisor starts one of its own on a free loopback port.

    `url` is one or a list of them (nats:// or tls://). `port` and `max_payload` (bytes) are for a server of our
    own; port 0 is a free one. `credentials` is a file as `nsc generate creds` makes (it needs `pip install
    'troupe[credentials]'`). `grace` is how many seconds an actor goes on without NATS before it exits.
    `password_file` is a file whose first line is the password, as managers of containers hand out secrets.
    """

    url: str | list[str] = []
    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    credentials: str | None = None
    tls: Tls | None = None
    port: Port = 0
    max_payload: Annotated[int, Meta(ge=65_536, le=67_108_864)] = 8_388_608
    grace: Seconds = 30.0

    @property
    def urls(self) -> list[str]:
        """The server's URLs; none for a server of our own."""
        return [self.url] if isinstance(self.url, str) else self.url


class Http(Written, kw_only=True):
    """Where a model's processors answer HTTP; they share the port (0: a free one), off with `enabled: false`."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8000


class Restart(Written, kw_only=True):
    """When a slot is started again, in OTP's words; every time in seconds.

    At most `intensity` restarts within `period`, after which the slot is failed. Between two starts `backoff`,
    doubled each time up to `backoff_max`, with a jitter of a fifth; forgotten after `forget` in ready.
    `crashes_before_ready` counts apart those that never became ready.
    """

    type: Literal["permanent", "transient", "temporary"] = "permanent"
    intensity: Count = 5
    period: Seconds | None = None
    backoff: Seconds = 0.2
    backoff_max: Seconds = 30.0
    forget: Seconds = 60.0
    crashes_before_ready: Count = 3


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


class Part(Written, kw_only=True):
    """One role in a model's cast: how many slots, what each takes, and how it is started.

    `capacity` is how many requests a slot takes at once. `load_deadline` and `drain_deadline` are in seconds.
    `args` are SGLang's own arguments (any name of its ServerArgs) for this role; `gpus` are the indices a slot
    owns, one list for each slot; left out, it is given a free one. `share_gpus: true` lets slots that all say so
    have a GPU together; `memory_share` is what a slot takes of each one's memory for weights and KV cache
    (docs/gpu.md). `near_cpus` binds it to the CPUs near its GPUs. `min_ready` is how many must be ready for the
    gate to stay open. `advertise` is the address at which other hosts reach this one (decode reaches prefill's
    bootstrap server there): an address, a host's name, or `auto` for whatever the name of the actor's own host
    stands for. `spawn: external` says that another manager starts the slots (docs/external.md); left at `auto`, the
    model's `spawn` counts. `understudies` (of prefill, decode and encoder) are warm spares beyond `count`: loaded, with
    slots and GPUs of their own, and at work as soon as one of the others is gone (docs/restarts.md).
    """

    count: Count = 1
    capacity: Annotated[int, Meta(ge=1)] = 64
    min_ready: Count = 1
    args: dict[str, Any] = {}
    env: dict[str, str] = {}
    gpus: list[list[Count]] = []
    share_gpus: bool = False
    memory_share: Annotated[float, Meta(gt=0, lt=1)] | None = None
    near_cpus: bool = True
    spawn: Spawn = "auto"
    advertise: str = "127.0.0.1"
    load_deadline: Seconds | None = None
    drain_deadline: Seconds = 30.0
    restart: Restart | None = None
    http: Http | None = None
    understudies: Count = 0

    @property
    def slots(self) -> int:
        """How many slots there are, understudies included."""
        return self.count + self.understudies


class Metrics(Written, kw_only=True):
    """Where a host's publisher answers Prometheus; a port left out is 9400, or a free one where that is taken."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port | None = None


class Dashboard(Written, kw_only=True):
    """The supervisor's page: how everything stands, what happened, and buttons for those who have its token.

    A port left out is 7070, or a free one where that is taken; 0 is a free one; a port that is given must be free.
    Everyone who reaches `host` can look; actions need the token of `troupe status` (docs/dashboard.md). `names` are the
    host names by which browsers may ask for it (a proxy's), besides addresses, localhost and this host's own name.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port | None = None
    names: list[str] = []


class Watch(Written, kw_only=True):
    """When a slot is taken to hang; every time in seconds.

    `silence`: of a slot that is not heard for so long, processors take its streams elsewhere. Heartbeats come twice a
    second, so two may be late; longer makes longer pauses, shorter moves streams that need not move, at the price of
    their prompts computed again. `stall`: the same for an engine that has work, but neither takes a step nor spends CPU
    time; the supervisor kills it. `compute`: the same for one that computes a prompt, or whose CPU time goes on. A
    kernel compiled on its first use takes 10 to 20 seconds, and loses them if it is killed; `compute_per_token` is
    added for each token of the prompts at hand: 100 tokens/s is slow even for a CPU. `look`: of a slot that is not
    heard for so long, the supervisor looks whether its process is stopped, which is proof, and costs one file read.
    """

    silence: Seconds = 1.5
    stall: Seconds = 1.5
    compute: Seconds = 30.0
    compute_per_token: Annotated[float, Meta(ge=0)] = 0.01
    look: Seconds = 1.0


class Logs(Written, kw_only=True):
    """What is logged, and how it is written.

    `format`: auto is text on a terminal and lines of JSON elsewhere, the log files of slots and supervisor included;
    `troupe logs` shows both as text, and what `troupe up` says on its own terminal is text unless json is asked for.
    `level` left out is `log_level`; `troupe log-level` changes it while things run. `max_bytes` bounds the log of each
    slot, what its engine itself writes included: one that has grown beyond it goes on as a new one, and five earlier
    ones are kept. Prompts, answers and secrets are logged at no level.
    """

    format: Format = "auto"
    level: Level | None = None
    max_bytes: Annotated[int, Meta(ge=65_536)] = 16 << 20


class Probe(Written, kw_only=True):
    """Health probes of a model's engines: one token (or one vector) for one token, when a slot has long been idle.

    `idle` is how long, in seconds, `deadline` how long an answer may take before it counts as none. An engine that
    hangs while idle is found within the two together, where without probes the first request would find it. Probes
    every 10 seconds cost a fraction of a percent of a core (docs/probes.md has figures). Real work never waits for one.
    """

    enabled: bool = True
    idle: Seconds = 10.0
    deadline: Seconds = 30.0


class Embedding(Written, kw_only=True):
    """What an embedding model's vectors bear.

    `dimensions` says whether the first numbers of a vector alone still mean something (a model that was trained so, "à
    la matryoshka"): `any` of them, only `whole` vectors, or a list of the lengths that do. `auto` goes by the model's
    config.json (`is_matryoshka`, `matryoshka_dimensions`, as SGLang does), which for many models says nothing: whole.
    """

    dimensions: Literal["auto", "any", "whole"] | list[Annotated[int, Meta(ge=1)]] = "auto"


class Publisher(Written, kw_only=True):
    """The publisher, one a host: KV events and load figures of the host's engines, and its metrics.

    `name` stands for the host in the slot `<name>-publisher-0`; left out, it is the host's own. `events: zmq` leaves KV
    events on the engines' own ZMQ sockets; the engines' registrations say where. `engines: cluster` takes in all
    engines of the cluster, not only this host's: for containers, each of which is a host of its own.
    """

    enabled: bool = True
    name: str | None = None
    http: Metrics = field(default_factory=Metrics)
    events: Literal["nats", "zmq"] = "nats"
    engines: Literal["host", "cluster"] = "host"
    spawn: Literal["plain", "external"] = "plain"
    restart: Restart | None = None

    @property
    def slot(self) -> Slot:
        """The slot of this host's publisher."""
        return Slot(self.name if self.name is not None else alias_of(socket.gethostname()), "publisher", 0)


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


class Cluster(Written, kw_only=True):
    """A whole cluster: its name, its folder, its NATS, its models.

    `cluster` is the prefix of its subjects: clusters that share a NATS server need different ones. `state` is the
    folder of logs, pids and the embedded server's data. `restart` holds for every slot that has none of its own.
    `drills: allowed` lets faults be injected on purpose.
    """

    cluster: str = "troupe"
    state: str = ".troupe"
    nats: Nats = field(default_factory=Nats)
    restart: Restart = field(default_factory=Restart)
    drills: Literal["allowed", "refused"] = "refused"
    log_level: Level = "info"
    publisher: Publisher = field(default_factory=Publisher)
    watch: Watch = field(default_factory=Watch)
    dashboard: Dashboard = field(default_factory=Dashboard)
    logs: Logs = field(default_factory=Logs)
    models: Annotated[list[Model], Meta(min_length=1)]

    @property
    def level(self) -> Level:
        """From which level on things are logged."""
        return self.logs.level or self.log_level


def read(path: Path) -> Cluster:
    """Read and check a configuration file; relative paths in it are taken from the file's own folder.

    Raises ConfigError with the file's name, the path inside it and the nearest right name.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return parse(data, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(data: bytes, folder: Path) -> Cluster:
    """Decode and check a configuration; `folder` is what its relative paths start from. Raises ConfigError."""
    try:
        cluster = msgspec.yaml.decode(data, type=Cluster)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"not YAML: {error}") from None
    for model in cluster.models:
        model.path = _placed(model.path, folder)
        model.tokenizer = _placed(model.tokenizer, folder)
        model.chat_template = _placed(model.chat_template, folder)
    if cluster.nats.password_file is not None:
        cluster.nats.password_file = str((folder / cluster.nats.password_file).resolve())
    check(cluster)
    return cluster


def check(cluster: Cluster) -> None:
    """Check what types cannot say; raise ConfigError for the first thing that is wrong."""
    _checked_token(cluster.cluster, "cluster")
    if cluster.publisher.name is not None:
        _checked_token(cluster.publisher.name, "publisher.name")
    seen: dict[str, str] = {}
    for at, model in enumerate(cluster.models):
        where = f"models[{at}]"
        _checked_token(model.slug, f"{where}.alias")
        if other := seen.get(model.slug):
            raise ConfigError(
                f"{where}: {model.name!r} and {other!r} both have the alias {model.slug!r}; give one of them an `alias`"
            )
        seen[model.slug] = model.name
        _check_model(model, where)
    _check_nats(cluster)


def shown(urls: list[str]) -> str:
    """Write URLs as they may be logged and shown: without the user and the password that may stand in them."""
    return ", ".join(without_secrets(url) for url in urls)


def without_secrets(url: str) -> str:
    """Leave out what stands before the host."""
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def wrong_url(urls: list[str]) -> str | None:
    """Say what is wrong with the first NATS URL that cannot be used; None if all can."""
    for url in urls:
        scheme = url.partition("://")[0] if "://" in url else "nats"
        if scheme not in SCHEMES:
            known = " and ".join(f"{scheme}://" for scheme in SCHEMES)
            told = f"{without_secrets(url)!r} begins with {scheme}://"
            return f"{told}; {known} can be used (a server's websocket port cannot)"
    return None


def _check_nats(cluster: Cluster) -> None:
    nats = cluster.nats
    if nats.password is not None and nats.password_file is not None:
        raise ConfigError("nats.password_file: there is a password, too; give one of the two")
    if nats.password_file is not None and nats.user is None:
        raise ConfigError("nats.password_file: there is no `user` whose password that would be")
    if (why := wrong_url(nats.urls)) is not None:
        raise ConfigError(f"nats.url: {why}")
    external = [slot for slot, (model, named) in slots_of(cluster).items() if model.spawn_of(named.role) == "external"]
    if external and not nats.urls:
        raise ConfigError(
            f"nats.url: missing; {external[0]} is started by another manager (spawn: external), and its NATS must be "
            "there whether the supervisor is or not"
        )


def _check_model(model: Model, where: str) -> None:
    if not model.cast.get("processor"):
        raise ConfigError(f"{where}.cast: there is no processor; every model needs at least one")
    if "encoder" in model.cast:
        _check_encoder(model, where)
    elif "decode" not in model.cast:
        raise ConfigError(
            f"{where}.cast: there is neither decode nor encoder; a model that generates needs decode (without prefill "
            "it runs aggregated), an embedding model needs encoder"
        )
    elif "embeddings" in model.served:
        raise ConfigError(f"{where}.serves: embeddings are made by an encoder, which this cast has not")
    elif model.embedding != Embedding():
        raise ConfigError(f"{where}.embedding: only a model with an encoder in its cast makes embeddings")
    if model.text:
        _check_text(model, where)
    if "publisher" in model.cast:
        raise ConfigError(f"{where}.cast.publisher: it belongs to no model; `publisher` beside `models` configures it")
    if model.engine == "sglang" and model.path is None:
        raise ConfigError(f"{where}.path: missing; SGLang needs a model folder or a Hugging Face id")
    if model.engine == "simulated" and model.tokenizer is None and model.path is None:
        raise ConfigError(f"{where}.tokenizer: missing; the processor needs a folder with tokenizer.json")
    for role, part in model.cast.items():
        spot = f"{where}.cast.{role}"
        if part.min_ready > part.count:
            raise ConfigError(f"{spot}.min_ready: {part.min_ready} is more than count ({part.count})")
        if part.understudies:
            _check_understudies(model, role, part, f"{spot}.understudies")
        if part.gpus and len(part.gpus) != part.slots:
            of_them = f" ({part.understudies} of them understudies)" if part.understudies else ""
            raise ConfigError(f"{spot}.gpus: {len(part.gpus)} lists for {part.slots} slots{of_them}; each has its own")
        if part.gpus and model.spawn_of(role) == "external":
            raise ConfigError(f"{spot}.gpus: the manager that starts these slots (spawn: external) gives them GPUs")
        if part.http and role != "processor":
            raise ConfigError(f"{spot}.http: only processors have an HTTP door")


def _check_understudies(model: Model, role: Role, part: Part, where: str) -> None:
    if role not in UNDERSTUDIED:
        raise ConfigError(
            f"{where}: a {role} has none, for it loads within a second; raise its `count` instead "
            f"(understudies are for {', '.join(UNDERSTUDIED)})"
        )
    if model.spawn_of(role) == "external":
        raise ConfigError(
            f"{where}: another manager starts these slots (spawn: external), and only who starts them can tell the "
            "dead from the silent in time; leave understudies out, and raise `count` where a spare is wanted"
        )
    if not part.count:
        raise ConfigError(f"{where}: with `count: 0` there is nobody to stand in for")


def _check_text(model: Model, where: str) -> None:
    """Check a model whose engine has template and tokenizer: what would be another one's, or need ours, is refused."""
    if model.embeds:
        raise ConfigError(
            f"{where}.text: only chats are left to an engine as text, and an encoder has none; take it out"
        )
    if model.chat_template is not None:
        raise ConfigError(
            f"{where}.chat_template: with `text: true` the engine renders chats, by its own tokenizer's template; take "
            "out one of the two"
        )
    if not model.engine_tokenizer:
        raise ConfigError(
            f"{where}.engine_tokenizer: `text: true` leaves tokenising to the engine's own tokenizer, which must be on"
        )
    if model.engine == "sglang" and model.tokenizer is not None:
        raise ConfigError(
            f"{where}.tokenizer: with `text: true` the engine's own counts; say `args: {{tokenizer_path: ...}}` where "
            "it is not in `path`"
        )
    if wrong := [kind for kind in model.served if kind != "chat"]:
        raise ConfigError(
            f"{where}.serves: {' and '.join(wrong)} cannot be served with `text: true`: the engine alone has the "
            "tokenizer, and it takes chats; leave it at [chat]"
        )


def _check_encoder(model: Model, where: str) -> None:
    """Check an embedding model: everything of it that is for generating would be without effect."""
    if others := [role for role in ("prefill", "decode") if role in model.cast]:
        raise ConfigError(
            f"{where}.cast.encoder: an embedding model is a processor and an encoder; take out {' and '.join(others)}, "
            "or serve the embeddings as a model of their own"
        )
    if wrong := [kind for kind in model.served if kind != "embeddings"]:
        raise ConfigError(f"{where}.serves: {' and '.join(wrong)} cannot be served by an encoder, only embeddings can")
    for name in ("chat_template", "reasoning_parser", "tool_call_parser"):
        if getattr(model, name) is not None:
            raise ConfigError(f"{where}.{name}: an embedding model answers with vectors and needs none; take it out")


def slots_of(cluster: Cluster) -> dict[str, tuple[Model, Slot]]:
    """List every slot of a cluster by name, in starting order: what computes first, what admits requests last.

    The publisher of this host comes after all of them; what stands in for its model has no name.
    """
    order: tuple[Role, ...] = ("encoder", "prefill", "decode", "processor")
    slots = {
        str(slot): (model, slot)
        for model in cluster.models
        for role in order
        if role in model.cast
        for slot in (Slot(model.slug, role, number) for number in range(model.cast[role].slots))
    }
    if cluster.publisher.enabled:
        slots[str(cluster.publisher.slot)] = (_no_model(cluster.publisher), cluster.publisher.slot)
    return slots


def _no_model(publisher: Publisher) -> Model:
    """Make what stands where a publisher's model would be: no name, no engine to speak of, and its own part alone."""
    part = Part(capacity=0, spawn=publisher.spawn, restart=publisher.restart, drain_deadline=PUBLISHER_DRAIN)
    return Model(name="", alias="", engine="simulated", load_deadline=PUBLISHER_LOAD, cast={"publisher": part})


def find_slot(cluster: Cluster, name: str) -> tuple[Model, Slot]:
    """Find a slot by its name; raise ConfigError with the names there are if it is none of them."""
    slots = slots_of(cluster)
    if name not in slots:
        raise ConfigError(f"there is no slot {name!r}; {_nearest(name, list(slots))}")
    return slots[name]


def _placed(path: str | None, folder: Path) -> str | None:
    """Resolve a relative path from the configuration's folder; leave alone what is no file there (a hub's id)."""
    if path is None or Path(path).is_absolute():
        return path
    placed = folder / path
    return str(placed.resolve()) if placed.exists() or path.startswith((".", "/")) else path


def _checked_token(text: str, where: str) -> None:
    try:
        check_token(text, "the name")
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_WRONG = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?", re.DOTALL)


def _explain(text: str) -> str:
    """Turn msgspec's sentence into ours: the path first, and for an unknown field the nearest known one."""
    if unknown := _UNKNOWN.fullmatch(text):
        name, path = unknown["name"], unknown["path"] or ""
        return f"{path + '.' if path else ''}{name}: unknown; {_nearest(name, _fields_at(path))}"
    wrong = _WRONG.fullmatch(text)
    if not wrong or not wrong["path"]:
        return text
    return f"{wrong['path']}: {wrong['what'][0].lower()}{wrong['what'][1:]}"


def _fields_at(path: str) -> list[str]:
    """List the fields that the struct at a path of the configuration may have."""
    kind: Any = Cluster
    for step in [part for part in re.split(r"\.|\[\.\.\.\]|\[\d+\]", path) if part]:
        if kind is None:
            return []
        found = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}.get(step)
        kind = _struct_in(found)
    return [field.encode_name for field in msgspec.structs.fields(kind)] if kind is not None else []


def _struct_in(kind: Any) -> Any:
    """Find the one struct of ours inside a type such as `list[Model]` or `Restart | None`."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind
    for inner in getattr(kind, "__args__", ()):
        if (found := _struct_in(inner)) is not None:
            return found
    return None


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"known are {', '.join(known[:40])}" if known else "nothing is known there"
    return f"did you mean {close[0]!r}? {listed}" if close else listed


__all__ = ["ROLES", "Cluster", "ConfigError", "Model", "Part", "check", "find_slot", "parse", "read", "slots_of"]
