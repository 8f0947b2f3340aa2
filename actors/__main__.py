"""`python -m actors ROLE …`: start one actor, or the prefork parent that forks them."""

import argparse
import os
import sys
from pathlib import Path

from setproctitle import setproctitle

from actors.actor import Actor, Setup
from messages import codec, config, logs
from messages.ids import ROLES, parse_slot, short
from messages.lifecycle import Exit, ExitNote


def main(argv: list[str] | None = None) -> int:
    """Live one actor's life; return its exit code (`messages.lifecycle.Exit`)."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["prefork"]:
        from actors.prefork import main as prefork

        return prefork(arguments[1:])
    options = _parser().parse_args(arguments)
    folder = Path(options.state) / "slots" / options.slot
    folder.mkdir(parents=True, exist_ok=True)
    try:
        actor_setup = _setup(options, folder)
    except (config.ConfigError, ValueError) as error:
        sys.stderr.write(f"{options.slot}: {error}\n")
        note = ExitNote(generation=options.generation, code=int(Exit.CONFIG), reason=str(error))
        (folder / "exit.json").write_bytes(codec.to_json(note))
        return int(Exit.CONFIG)
    who = short(options.slot, options.generation)
    # `ps` explains the system; what was forked from the prefork parent would bear its name.
    setproctitle(f"troupe {who}")
    logs.start(who, actor_setup.cluster.log_level)
    return _actor_class(options.role)(actor_setup).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actors",
        description="Run one actor of a cluster. The supervisor calls this; so may any other manager of processes.",
        epilog="example: python -m actors decode --config configs/demo.yaml --slot demo-decode-0 --generation 1 "
        "--nats nats://127.0.0.1:4222 --state .troupe",
    )
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--config", required=True, type=Path, help="the cluster's configuration")
    parser.add_argument("--slot", required=True, help="which slot of the cast this is, for example demo-decode-0")
    parser.add_argument("--generation", type=int, default=1, help="number of this life of the slot")
    parser.add_argument("--nats", action="append", default=[], help="NATS URL, instead of the configuration's")
    parser.add_argument("--state", default=".troupe", help="state folder (default: .troupe)")
    parser.add_argument("--http-port", type=int, default=0, help="port of a processor's HTTP door")
    return parser


def _setup(options: argparse.Namespace, folder: Path) -> Setup:
    cluster = config.read(options.config)
    model, slot = config.find_slot(cluster, options.slot)
    if slot.role != options.role:
        raise config.ConfigError(f"{options.slot} is a {slot.role}, not a {options.role}")
    part = model.cast[slot.role]
    os.environ.update(model.env | part.env)
    if options.nats:
        cluster.nats.url = options.nats
    return Setup(
        cluster=cluster,
        model=model,
        part=part,
        slot=parse_slot(options.slot),
        generation=options.generation,
        nats=cluster.nats,
        folder=folder,
        http_port=options.http_port,
    )


def _actor_class(role: str) -> type[Actor]:
    """Import a role's class only when it is the one to run: each role loads what it needs and no more."""
    if role == "processor":
        from actors.processor.processor import Processor

        return Processor
    if role == "publisher":
        from actors.publisher.publisher import Publisher

        return Publisher
    from actors.worker import Decoder, Prefiller

    return {"decode": Decoder, "prefill": Prefiller}[role]


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # An engine's libraries leave threads and exit handlers behind that can take a minute; all that matters is done.
    os._exit(status)
    if role == "encoder":
        from actors.encoder import Encoder

        return Encoder
