"""`troupe up` and `troupe check`: start a cluster in the foreground, or only look whether it could be."""

import asyncio
import json
import logging
import logging.handlers
import shlex
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

from messages import logs
from messages.bus import BusError
from messages.config import Cluster, ConfigError, Served, shown
from messages.gate import Gate
from messages.subjects import Subjects
from supervisor import nvml, spawner
from supervisor.commands.codes import DEFAULT_STATE, Code, CommandError
from supervisor.commands.common import read_config, say, table
from supervisor.ground import StrandedError
from supervisor.loop import Supervisor
from supervisor.nats_server import NatsError, find_binary
from supervisor.ports import PortError
from supervisor.spec import Spec, check_files, specs_of
from supervisor.state import ClusterRecord, Folder, HeldError
from supervisor.teller import WhenOpen

LOG_BYTES: Final = 8 << 20
LOGS_KEPT: Final = 3

log = logging.getLogger("troupe.supervisor")


def up(options: Namespace) -> Code:
    """Start the cluster of a configuration and watch over it until Ctrl-C."""
    cluster, specs = _checked(options)
    folder = Folder(Path(options.state or cluster.state))
    try:
        folder.make()
    except (FileExistsError, NotADirectoryError):
        raise CommandError(
            Code.FAILED, f"the state folder {folder.root} cannot be made: a file is in its place; --state names another"
        ) from None
    except OSError as error:
        raise CommandError(Code.FAILED, f"the state folder {folder.root} cannot be made: {error.strerror}") from None
    try:
        with folder.held():
            _start_log(folder, cluster)
            gpus = nvml.find() if any(spec.gpus for spec in specs.values()) else None
            when_open = _say_how(folder, cluster)
            return asyncio.run(_run(Supervisor(cluster, specs, options.CONFIG, folder, when_open, gpus)))
    except (HeldError, PortError, StrandedError) as error:
        raise CommandError(Code.TAKEN, str(error)) from None
    except ConfigError as error:
        raise CommandError(Code.CONFIG, f"{options.CONFIG}: {error}") from None
    except (BusError, NatsError) as error:
        raise CommandError(Code.FAILED, str(error)) from None


def check(options: Namespace) -> Code:
    """Check a configuration whole, and show what it would start."""
    cluster, specs = _checked(options)
    rows = [["SLOT", "STARTED", "READY WITHIN", "GPU", "RESTARTS"]]
    for spec in specs.values():
        policy = spec.policy
        if spec.external:
            rows.append([spec.slot, "external", "-", "-", "its manager's"])
            continue
        budget = f"{policy.intensity} in {policy.period:g} s, {policy.crashes_before_ready} before ready"
        way = f"{spec.spawn}{' (' + spec.device + ')' if spec.spawn == 'prefork' else ''}"
        rows.append([spec.slot, way, f"{spec.load_deadline:g} s", ",".join(map(str, spec.gpus)) or "-", budget])
    say(table(rows))
    for http in {spec.alias: spec.http for spec in specs.values() if spec.http is not None}.items():
        say(f"HTTP of {http[0]}: {http[1].host}, port {http[1].port or 'free'}")
    say(f"NATS: {shown(cluster.nats.urls) or 'embedded'}")
    if (page := cluster.dashboard).enabled:
        say(f"page: {page.host}, port {'7070, or a free one' if page.port is None else page.port or 'free'}")
    say(f"{options.CONFIG}: well")
    return Code.OK


def _checked(options: Namespace) -> tuple[Cluster, dict[str, Spec]]:
    cluster = read_config(options.CONFIG)
    try:
        named = any(part.gpus for model in cluster.models for part in model.cast.values())
        asked = nvml.find() if named or spawner.has_gpu() else None
        cards = asked.cards() if asked is not None else None
        specs = specs_of(cluster, has_gpu=spawner.has_gpu(), cards=cards, visible=nvml.visible())
        check_files(cluster)
        if not cluster.nats.urls:
            find_binary()
    except ConfigError as error:
        raise CommandError(Code.CONFIG, f"{options.CONFIG}: {error}") from None
    except NatsError as error:
        raise CommandError(Code.CONFIG, f"{options.CONFIG}: nats.url: missing, and {error}") from None
    return cluster, specs


TRY: Final[dict[Served, tuple[str, str, dict[str, Any], list[str] | None]]] = {
    "chat": (
        "chat",
        "chat/completions",
        {"max_tokens": 40, "messages": [{"role": "user", "content": "Hello!"}]},
        ["--max-tokens", "40"],
    ),
    "completions": ("completion", "completions", {"max_tokens": 40, "prompt": "Hello!"}, None),
    "embeddings": ("embed", "embeddings", {"input": "Hello!"}, ["--embed"]),
}
"""For each endpoint kind its kind on NATS, its path, what a body says, and how `troupe submit` asks for it."""


async def _run(supervisor: Supervisor) -> Code:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.end)
    try:
        await supervisor.run()
    except asyncio.CancelledError:
        log.info("interrupted before anything was started")
        return Code.INTERRUPTED
    log.info("everything has ended%s", ", but what other managers have started" if supervisor.external else "")
    return Code.OK


def _say_how(folder: Folder, cluster: Cluster) -> WhenOpen:
    """Make what is called when a gate opens: the first time it says how to talk to the model."""
    state = [] if folder.root == Path(DEFAULT_STATE).resolve() else ["--state", str(folder.root)]

    said: set[str] = set()
    served = {model.name: model.served for model in cluster.models}

    def say_how(record: ClusterRecord, gate: Gate) -> None:
        model = gate.model
        if model in said:
            return
        said.add(model)
        kinds = served.get(model, [])
        kind, path, fields, options = next((TRY[kind] for kind in kinds), ("generate", "", {}, None))
        say(f"\n{model} answers now:")
        say(f"  NATS    {shown(record.nats.urls)}   subject {Subjects(record.cluster).submit(gate.alias, kind)}")
        if record.dashboard:
            say(f"  page    {record.dashboard}")
        word = "try "
        if url := record.http.get(gate.alias) or next(iter(gate.http), None):
            say(f"  HTTP    {url}/v1")
            if path:
                body = shlex.quote(json.dumps({"model": model} | fields))
                say(f"  try     curl {url}/v1/{path} -H 'content-type: application/json' -d {body}")
                word = "or  "
        if options is not None:
            say(f"  {word}    {shlex.join(['troupe', 'submit', *state, '--model', model, *options, 'Hello!'])}")
        say("Ctrl-C drains and ends it; `troupe status` in another shell shows how it is.\n")

    return say_how


def _start_log(folder: Folder, cluster: Cluster) -> None:
    """Log to the terminal for people, and to the folder for later."""
    shown = logging.StreamHandler(sys.stdout)
    plain = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    shown.setFormatter(logs.formatter("supervisor", "json") if cluster.logs.format == "json" else plain)
    kept = logging.handlers.RotatingFileHandler(
        folder.root / "supervisor.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8"
    )
    kept.setFormatter(logs.formatter("supervisor", cluster.logs.format))
    root = logging.getLogger(logs.ROOT)
    root.handlers[:] = [shown, kept]
    root.setLevel(cluster.level.upper())
    root.propagate = False
