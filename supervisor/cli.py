"""`troupe`: the command line. Each command has an example in its help, and each exit code a meaning."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor.commands.codes import DEFAULT_STATE, MEANINGS, Code, CommandError

Run = Callable[[argparse.Namespace], Code]


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options, unknown = _parser().parse_known_args(argv)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    run: Run = options.run
    _load_nats()
    try:
        return int(run(options))
    except CommandError as error:
        sys.stdout.flush()
        sys.stderr.write(f"troupe {options.command}: {error}\n")
        return int(error.code)
    except KeyboardInterrupt:
        return int(Code.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has enough of it.
        sys.stderr.close()
        return int(Code.OK)


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {int(code):<4} {meaning}" for code, meaning in MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog="troupe",
        description="Serve language models as a cluster of actors that talk over NATS.",
        epilog=f"exit codes:\n{codes}\n\nexample: troupe up configs/demo.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_starting(commands)
    _add_asking(commands)
    _add_slots(commands)
    _add_ping(commands)
    _add_drill(commands)
    return parser


def _add_starting(commands: Any) -> None:
    up = _command(
        commands,
        "up",
        "start a cluster in the foreground (Ctrl-C drains and ends it, twice aborts), or take over one that runs on",
        "troupe up configs/demo.yaml",
        _up,
    )
    up.add_argument("CONFIG", type=Path, help="the cluster's configuration")
    up.add_argument("--state", metavar="DIR", help=f"state folder (default: the configuration's, {DEFAULT_STATE})")
    check = _command(
        commands,
        "check",
        "check a configuration and show what it would start",
        "troupe check configs/demo.yaml",
        _check,
    )
    check.add_argument("CONFIG", type=Path, help="the configuration to check")
    down = _command(
        commands,
        "down",
        "end all that the state folder knows, whether a supervisor lives or not",
        "troupe down --timeout 30",
        _down,
    )
    _where(down)
    down.add_argument(
        "--timeout",
        type=_seconds,
        default=120.0,
        metavar="SECONDS",
        help="how long draining may take before what is left is aborted (default: 120)",
    )
    down.add_argument("--now", action="store_true", help="abort at once instead of draining")


def _add_asking(commands: Any) -> None:
    status = _command(
        commands,
        "status",
        "show addresses, gates and slots; exit code 5 while a gate is closed",
        "troupe status --wait-ready 60",
        _status,
    )
    _where(status)
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "--wait-ready", type=_seconds, metavar="SECONDS", help="wait until every gate is open, so long at most"
    )
    submit = _command(
        commands,
        "submit",
        "ask a model something",
        'troupe submit --max-tokens 40 "Why is the sky blue?"',
        _submit,
    )
    submit.add_argument("PROMPT", help="what to ask; - reads it from stdin")
    _where(submit)
    submit.add_argument("--model", metavar="NAME", help="which model (default: the only one)")
    submit.add_argument("--max-tokens", type=int, metavar="N", help="how many tokens may come")
    submit.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    submit.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    submit.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="how long the answer may take")
    submit.add_argument("--no-stream", action="store_true", help="write the answer when all of it is there")
    submit.add_argument("--json", action="store_true", help="as JSON: a line an event, or one object with --no-stream")
    submit.add_argument("--embed", action="store_true", help="turn the prompt into a vector, by an embedding model")
    submit.add_argument("--nats", metavar="URL", help="a cluster elsewhere, instead of the state folder's")
    submit.add_argument("--cluster", metavar="NAME", default="troupe", help="its name (with --nats; default: troupe)")


def _add_ping(commands: Any) -> None:
    ping = _command(
        commands,
        "ping",
        "see whether a slot, the supervisor or NATS answers; for health checks",
        "troupe ping demo-decode-0 --config configs/containers.yaml",
        _ping,
    )
    ping.add_argument(
        "WHAT",
        nargs="?",
        default=os.environ.get("TROUPE_SLOT", "nats"),
        help="a slot, or: supervisor, nats (default: the environment's TROUPE_SLOT, or nats)",
    )
    ping.add_argument("--state", metavar="DIR", help=f"the cluster's state folder (default: {DEFAULT_STATE})")
    ping.add_argument("--config", metavar="FILE", help="take NATS from this configuration instead of a state folder")


def _add_slots(commands: Any) -> None:
    for name, what, run in (
        ("drain", "let a slot finish what it has and stop; it stays stopped until `troupe restart`", _drain),
        ("restart", "let a slot finish what it has and start it anew; also one that failed or was drained", _restart),
    ):
        order = _command(commands, name, what, f"troupe {name} demo-decode-0 --wait 60", run)
        order.add_argument("SLOT", help="for example demo-decode-0; `troupe status` lists them")
        _where(order)
        order.add_argument(
            "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait until it has happened, so long at most"
        )
    logs = _command(commands, "logs", "show what a slot has written to its log", "troupe logs demo-decode-0 -f", _logs)
    logs.add_argument("SLOT", help="a slot, or: supervisor, nats, prefork-cpu, prefork-cuda")
    _where(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on showing what is added, across restarts")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="begin so many lines before the end")
    logs.add_argument(
        "-p", "--previous", type=int, default=0, metavar="K", help="the log of the K-th life before this one"
    )


def _add_drill(commands: Any) -> None:
    drill = _command(
        commands,
        "drill",
        "rehearse a failure under load, and prove what came of it; exit code 1 if it came out badly",
        "troupe drill kill --config configs/simulated.yaml",
        _drill,
    )
    drill.add_argument("NAME", nargs="?", help="which one, or: all (`--list` shows what there is)")
    drill.add_argument("--list", action="store_true", help="show what drills there are")
    drill.add_argument("--config", metavar="FILE", help="start a cluster of its own from this configuration")
    drill.add_argument("--state", metavar="DIR", help="or use the cluster that runs in this state folder")
    drill.add_argument("--model", metavar="NAME", help="which model (default: the only one that completes texts)")
    drill.add_argument("--target", metavar="SLOT", help="a slot, a role, 'only ROLE', 'busiest ROLE' or busiest")
    drill.add_argument(
        "--load", default="", metavar="FIELDS", help="for example clients=8,requests=100,http=4,tokens=64,timeout=30"
    )
    drill.add_argument("--times", type=_times, default=1, metavar="N", help="play it so many times (default: 1)")
    drill.add_argument("--minutes", type=_seconds, default=1.0, metavar="M", help="for random: how long (default: 1)")
    drill.add_argument("--seed", type=int, metavar="N", help="for random: play that sequence (default: a new one)")
    drill.add_argument(
        "--report",
        default=f"{DEFAULT_STATE}/drills",
        metavar="DIR",
        help=f"where reports go (default: {DEFAULT_STATE}/drills)",
    )
    drill.add_argument("--drills", default=_drills_file(), metavar="FILE", help="another configs/drills.yaml")


def _command(commands: Any, name: str, what: str, example: str, run: Run) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"example: {example}"
    )
    command.set_defaults(run=run, parser=command)
    return command


def _where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--state", metavar="DIR", help=f"the cluster's state folder (default: {DEFAULT_STATE})")
    command.add_argument("--config", metavar="FILE", help="take the state folder from this configuration")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 <= seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no span of time; a number of seconds from 0 up is")
    return seconds


def _times(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of times; 1 to 1000 is")
    return int(text)


def _drills_file() -> str:
    here = Path("configs/drills.yaml")
    return str(here if here.exists() else Path(__file__).resolve().parent.parent / here)


def _load_nats() -> None:
    """Load nats-py without aiohttp: it wants that for ws:// URLs alone, and it takes 11 MB and a tenth of a second."""
    if "nats" in sys.modules or "aiohttp" in sys.modules:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("nats")
    finally:
        del sys.modules["aiohttp"]


# Each command loads what it needs and no more: `troupe --help` is quick, and the supervisor small.


def _up(options: argparse.Namespace) -> Code:
    from supervisor.commands.up import up

    return up(options)


def _check(options: argparse.Namespace) -> Code:
    from supervisor.commands.up import check

    return check(options)


def _down(options: argparse.Namespace) -> Code:
    from supervisor.commands.down import down

    return down(options)


def _status(options: argparse.Namespace) -> Code:
    from supervisor.commands.status import status

    return status(options)


def _submit(options: argparse.Namespace) -> Code:
    from supervisor.commands.submit import submit

    return submit(options)


def _drain(options: argparse.Namespace) -> Code:
    from supervisor.commands.orders import drain

    return drain(options)


def _restart(options: argparse.Namespace) -> Code:
    from supervisor.commands.orders import restart

    return restart(options)


def _ping(options: argparse.Namespace) -> Code:
    from supervisor.commands.ping import ping

    return ping(options)


def _drill(options: argparse.Namespace) -> Code:
    from supervisor.commands.drill import drill

    return drill(options)


def _logs(options: argparse.Namespace) -> Code:
    from supervisor.commands.logs import logs

    return logs(options)


if __name__ == "__main__":
    sys.exit(main())
