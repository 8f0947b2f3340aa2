"""`python -m actors ROLE …`: start one actor, or the prefork parent that forks them."""

import argparse
import logging
import os
import re
import socket
import sys
from pathlib import Path

import msgspec
import uvloop
from setproctitle import getproctitle, setproctitle

from actors import claiming
from actors.actor import Actor
from actors.ending import Ending, note_exit
from actors.setup import Setup
from messages import config, logs
from messages.ids import ROLES, parse_slot, short
from messages.lifecycle import Exit
from messages.subjects import Subjects

log = logging.getLogger("troupe.actor")

CLAIM_SLACK = 10.0


def main(argv: list[str] | None = None) -> int:
    """Live one actor's life; return its exit code (`messages.lifecycle.Exit`)."""
    # The place of the title is found by what the environment was at the start: imports, and what is forked, change it.
    getproctitle()
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["prefork"]:
        from actors.prefork import main as prefork

        return prefork(arguments[1:])
    options = parser().parse_args(arguments)
    try:
        options.slot = slot_name(options.slot)
    except config.ConfigError as error:
        return _end(None, "python -m actors", options.generation or 0, Ending(Exit.CONFIG, str(error)))
    folder = Path(options.state) / "slots" / options.slot
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"the state folder {folder} cannot be made: {error.strerror}; --state names another"
        return _end(None, options.slot, options.generation or 0, Ending(Exit.CONFIG, why))
    try:
        actor_setup = _setup(options, folder)
    except (config.ConfigError, ValueError) as error:
        return _end(folder, options.slot, options.generation or 0, Ending(Exit.CONFIG, str(error)))
    cluster = actor_setup.cluster
    logs.start(options.slot, cluster.level, cluster.logs.format)
    if options.generation is None:
        try:
            actor_setup = msgspec.structs.replace(actor_setup, generation=_claim(actor_setup))
        except Ending as ending:
            return _end(folder, options.slot, 0, ending, configured=True)
    who = short(options.slot, actor_setup.generation)
    # `ps` explains the system; what was forked from the prefork parent would bear its name.
    setproctitle(f"troupe {who}")
    logs.start(who, cluster.level, cluster.logs.format)
    return _actor_class(options.role)(actor_setup).run()


def parser() -> argparse.ArgumentParser:
    """Make the parser of an actor's command line."""
    made = argparse.ArgumentParser(
        prog="python -m actors",
        description="Run one actor of a cluster. The supervisor calls this; so may any other manager of processes, "
        "for slots with `spawn: external`.",
        epilog="example: python -m actors decode --config configs/containers.yaml --slot demo-decode-0",
    )
    made.add_argument("role", choices=ROLES)
    made.add_argument("--config", required=True, type=Path, help="the cluster's configuration")
    made.add_argument(
        "--slot",
        default=os.environ.get("TROUPE_SLOT"),
        help="which slot of the cast this is, for example demo-decode-0 (default: the environment's TROUPE_SLOT); "
        "demo-decode-{ordinal} takes the number at the end of this host's name, as a StatefulSet's pods have it",
    )
    made.add_argument(
        "--generation", type=int, help="number of this life of the slot (default: the next one, taken from NATS)"
    )
    made.add_argument("--nats", action="append", default=[], help="NATS URL, instead of the configuration's")
    made.add_argument("--state", default=".troupe", help="state folder (default: .troupe)")
    made.add_argument("--http-port", type=int, default=0, help="port of a processor's HTTP door")
    made.add_argument("--gpus", default="", help="indices of the GPUs that it was given, for its registration")
    made.add_argument("--memory-fraction", type=float, help="SGLang's mem_fraction_static, unless `args` has it")
    made.add_argument(
        "--advertise",
        default=os.environ.get("TROUPE_ADVERTISE"),
        help="address at which other hosts reach this one, instead of the configuration's (default: the environment's "
        "TROUPE_ADVERTISE)",
    )
    return made


def slot_name(asked: str | None) -> str:
    """Return the slot's name, with this host's number put in where that is asked for. Raises ConfigError."""
    if not asked:
        raise config.ConfigError("which slot is this? say --slot demo-decode-0, or set TROUPE_SLOT")
    if "{ordinal}" not in asked:
        return asked
    host = socket.gethostname()
    found = re.search(r"-([0-9]+)$", host)
    if found is None:
        raise config.ConfigError(
            f"--slot {asked}: this host's name, {host!r}, does not end in a hyphen and a number; name the slot outright"
        )
    return asked.replace("{ordinal}", str(int(found[1])))


def _setup(options: argparse.Namespace, folder: Path) -> Setup:
    cluster = config.read(options.config)
    model, slot = config.find_slot(cluster, options.slot)
    if slot.role != options.role:
        raise config.ConfigError(f"{options.slot} is a {slot.role}, not a {options.role}")
    part = model.cast[slot.role]
    part.spawn = model.spawn_of(slot.role)
    if options.generation is None and part.spawn != "external":
        raise config.ConfigError(
            f"{options.slot} is started by the supervisor, which says --generation; where another manager starts it, "
            "its part of the cast needs `spawn: external`"
        )
    os.environ.update(model.env | part.env)
    if options.nats:
        cluster.nats.url = options.nats
    part.advertise = _address(options.advertise or part.advertise)
    return Setup(
        cluster=cluster,
        model=model,
        part=part,
        slot=parse_slot(options.slot),
        generation=options.generation or 0,
        nats=cluster.nats,
        folder=folder,
        http_port=options.http_port,
        gpus=[int(index) for index in options.gpus.split(",") if index],
        memory_fraction=options.memory_fraction,
    )


def _address(advertise: str) -> str:
    """Turn a host's name, `auto` for our own, into an address: ZMQ binds to nothing else."""
    name = socket.gethostname() if advertise == "auto" else advertise
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise config.ConfigError(f"advertise: {name} is no address and no host that is known here: {error}") from None


def _claim(setup: Setup) -> int:
    patience = setup.part.drain_deadline + CLAIM_SLACK
    return uvloop.run(claiming.claim(setup.nats, Subjects(setup.cluster.cluster), setup.slot, patience))


def _end(folder: Path | None, who: str, generation: int, ending: Ending, *, configured: bool = False) -> int:
    """End before there is an actor that could: with the reason on stderr, and in the slot's folder."""
    if not configured:
        # How lines are to be written stands in a configuration that may be what is wrong.
        logs.start(who)
    log.error("exit %d: %s", ending.code, ending.reason)
    if folder is not None:
        note_exit(folder, generation, ending)
    return int(ending.code)


def _actor_class(role: str) -> type[Actor]:
    """Import a role's class only when it is the one to run: each role loads what it needs and no more."""
    if role == "processor":
        from actors.processor.processor import Processor

        return Processor
    if role == "publisher":
        from actors.publisher.publisher import Publisher

        return Publisher
    if role == "encoder":
        from actors.encoder import Encoder

        return Encoder
    from actors.worker import Decoder, Prefiller

    return {"decode": Decoder, "prefill": Prefiller}[role]


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # An engine's libraries leave threads and exit handlers behind that can take a minute; all that matters is done.
    os._exit(status)
