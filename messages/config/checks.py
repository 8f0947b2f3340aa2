"""What types cannot say of a configuration: names that collide, casts that serve nothing, keys without effect."""

from typing import Final

from messages.config.cast import Part
from messages.config.cluster import Cluster
from messages.config.model import Embedding, Model
from messages.config.nats import wrong_url
from messages.config.slots import slots_of
from messages.config.written import ConfigError
from messages.ids import Role, check_token

UNDERSTUDIED: Final[tuple[Role, ...]] = ("prefill", "decode", "encoder")
"""Roles that may have understudies: those whose engines take long to load."""


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


def _checked_token(text: str, where: str) -> None:
    try:
        check_token(text, "the name")
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


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
