"""Child specs as data: what every slot of a configuration needs to be started, watched and ended, checked whole."""

import os
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct, field

from messages.config import Cluster, ConfigError, Http, Model, slots_of
from messages.config import Restart as RestartConfig
from messages.ids import Role, Slot
from supervisor import gpus
from supervisor.gpus import Card, Given, Want

FRONT_TO_BACK: Final[dict[Role, int]] = {"processor": 0, "encoder": 1, "prefill": 2, "decode": 3, "publisher": 4}
"""Order of ending: what admits requests first, so that what computes can finish them."""

ENGINE_ROLES: Final = frozenset[Role]({"encoder", "prefill", "decode"})
"""Roles that own an engine, and whose `steps` therefore show progress."""

LOAD_DEADLINES_A_PERIOD: Final = 3.0


class Policy(Struct, frozen=True, kw_only=True):
    """When a slot is started again, nothing left open; times in seconds (`messages.config.Restart` explains it)."""

    type: Literal["permanent", "transient", "temporary"] = "permanent"
    intensity: int = 5
    period: float = 1_800.0
    backoff: float = 0.2
    backoff_max: float = 30.0
    forget: float = 60.0
    crashes_before_ready: int = 3


class Spec(Struct, frozen=True, kw_only=True):
    """One slot as data; `tier` is its place in the order of ending, lowest first; a publisher has no model or alias.

    `share` is what it may take of the memory of each of its GPUs (None: what SGLang takes by itself). `actives` is how
    many of its role are to work at once where the role has understudies, 0 where all of them are.
    """

    slot: str
    role: Role
    alias: str
    model: str
    tier: int = 0
    min_ready: int = 1
    policy: Policy = Policy()
    load_deadline: float = 600.0
    drain_deadline: float = 30.0
    spawn: Literal["prefork", "plain", "external"] = "plain"
    device: Literal["cpu", "cuda"] = "cpu"
    env: dict[str, str] = field(default_factory=dict)
    gpus: tuple[int, ...] = ()
    share: float | None = None
    near_cpus: bool = True
    http: Http | None = None
    actives: int = 0

    @property
    def external(self) -> bool:
        """Whether another manager starts it, so that it can only be watched and asked."""
        return self.spawn == "external"


def specs_of(
    cluster: Cluster, *, has_gpu: bool, cards: list[Card] | None = None, visible: frozenset[int] | None = None
) -> dict[str, Spec]:
    """Make the spec of every slot, in starting order: what computes first, what admits requests last.

    `cards` are this host's GPUs (None: not known), `visible` the indices of those that we may use (None: all).
    Raises ConfigError for a GPU that is not there or an HTTP port or GPU that two owners claim.
    """
    specs = {name: _spec(cluster, model, slot, has_gpu) for name, (model, slot) in slots_of(cluster).items()}
    wants = [want for name, (model, slot) in slots_of(cluster).items() if (want := _want(model, slot, specs[name]))]
    for name, given in gpus.assign(wants, cards, visible).items():
        specs[name] = _with_gpus(specs[name], given)
    _check_ports(cluster)
    return specs


def check_files(cluster: Cluster) -> None:
    """Check that the files which the models need are there and readable; raise ConfigError for the first that is not.

    A path that is no folder here is taken for a Hugging Face id, which only the actor can look up. What only external
    slots need may lie where they run, and not here.
    """
    for at, model in enumerate(cluster.models):
        if all(model.spawn_of(role) == "external" for role in model.cast):
            continue
        where = f"models[{at}]"
        if model.path is not None:
            _check_model_folder(model, Path(model.path), f"{where}.path")
        if model.tokenizer is not None:
            _check_tokenizer(Path(model.tokenizer), f"{where}.tokenizer")
        if model.chat_template is not None and not os.access(model.chat_template, os.R_OK):
            raise ConfigError(f"{where}.chat_template: {model.chat_template} is no readable file")


def http_of(model: Model) -> Http | None:
    """Return where the model's processors answer HTTP, or None if they do not."""
    http = model.cast["processor"].http or Http()
    return http if http.enabled else None


def _spec(cluster: Cluster, model: Model, slot: Slot, has_gpu: bool) -> Spec:
    part = model.cast[slot.role]
    load_deadline = part.load_deadline or model.load_deadline
    return Spec(
        slot=str(slot),
        role=slot.role,
        alias=model.slug,
        model=model.name,
        tier=FRONT_TO_BACK[slot.role],
        min_ready=part.min_ready,
        policy=_policy(part.restart or cluster.restart, load_deadline),
        load_deadline=load_deadline,
        drain_deadline=part.drain_deadline,
        spawn=_way(model, slot.role),
        device="cuda" if model.device == "cuda" or (model.device == "auto" and has_gpu) else "cpu",
        env=model.env | part.env,
        near_cpus=part.near_cpus,
        http=http_of(model) if slot.role == "processor" and model.spawn_of(slot.role) != "external" else None,
        actives=part.count if part.understudies else 0,
    )


def _policy(config: RestartConfig, load_deadline: float) -> Policy:
    return Policy(
        type=config.type,
        intensity=config.intensity,
        period=config.period or LOAD_DEADLINES_A_PERIOD * load_deadline,
        backoff=config.backoff,
        backoff_max=config.backoff_max,
        forget=config.forget,
        crashes_before_ready=config.crashes_before_ready,
    )


def _way(model: Model, role: Role) -> Literal["prefork", "plain", "external"]:
    """Forking pays where importing is dear: SGLang's engines. Everything else starts in a second.

    What gives back a GPU's memory (`enable_memory_saver`) is put into a fresh process by LD_PRELOAD, and into no other.
    """
    asked = model.spawn_of(role)
    if asked != "auto":
        return asked
    if (model.args | model.cast[role].args).get("enable_memory_saver"):
        return "plain"
    return "prefork" if model.engine == "sglang" and role in ENGINE_ROLES else "plain"


def _want(model: Model, slot: Slot, spec: Spec) -> Want | None:
    """Say which GPUs a slot asks for, or None if it needs none."""
    part = model.cast[slot.role]
    named = tuple(part.gpus[slot.number]) if part.gpus else ()
    engine = model.engine == "sglang" and slot.role in ENGINE_ROLES and spec.device == "cuda" and not spec.external
    if not engine and not named:
        return None
    args = model.args | part.args
    try:
        count = gpus.needed(args)
    except ConfigError as error:
        raise ConfigError(f"{spec.slot}: {error}") from None
    if named and count is not None and count != len(named):
        raise ConfigError(
            f"{spec.slot}: its arguments (tp_size, pp_size, dp_size) take {count} GPUs, and `gpus` gives it "
            f"{len(named)}; without them tp_size is the number of GPUs"
        )
    return Want(
        slot=spec.slot,
        gpus=named,
        count=count or 1,
        shares=part.share_gpus,
        share=part.memory_share,
        measured="mem_fraction_static" in args,
    )


def _with_gpus(spec: Spec, given: Given) -> Spec:
    """Let a slot see its GPUs alone, by the indices that NVML has: CUDA's own order is another."""
    if not given.gpus:
        return spec
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, given.gpus))}
    return msgspec.structs.replace(spec, env=spec.env | env, gpus=given.gpus, share=given.share)


def _check_ports(cluster: Cluster) -> None:
    owners: dict[int, str] = {}
    for at, model in enumerate(cluster.models):
        http = http_of(model)
        if http is None or http.port == 0 or model.spawn_of("processor") == "external":
            continue
        if other := owners.get(http.port):
            raise ConfigError(
                f"models[{at}].cast.processor.http.port: {http.port} is the port of {other!r} already; "
                f"give {model.name!r} another one, or 0 for a free one"
            )
        owners[http.port] = model.name


def _check_model_folder(model: Model, path: Path, where: str) -> None:
    if not path.exists():
        if path.is_absolute():
            raise ConfigError(f"{where}: there is no folder {path}")
        return
    if not path.is_dir():
        raise ConfigError(f"{where}: {path} is a file; the model's folder is wanted")
    config = path / "config.json"
    if model.engine == "sglang" and not os.access(config, os.R_OK):
        raise ConfigError(f"{where}: {path} holds no readable config.json, so it is no model folder")
    if model.tokenizer is None:
        _check_tokenizer(path, where)


def _check_tokenizer(path: Path, where: str) -> None:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not os.access(file, os.R_OK):
        raise ConfigError(f"{where}: {file} is no readable file; the processor needs a tokenizer.json")
