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
    _add_watching(commands)
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
        "show addresses, gates and slots, or all of one slot; exit code 5 while a gate is closed, or it is not ready",
        "troupe status --wait-ready 60",
        _status,
    )
    status.add_argument("SLOT", nargs="?", help="one slot, with how it last recovered, stage by stage")
    _where(status)
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "--wait-ready", type=_seconds, metavar="SECONDS", help="wait until every gate is open, so long at most"
    )
    trace = _command(
        commands,
        "trace",
        "show the way of one request: where it has been, when, and why it went on elsewhere",
        "troupe trace 6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01",
        _trace,
    )
    trace.add_argument("ID", help="the request's id, as the answer or its X-Request-Id has it")
    _where(trace)
    trace.add_argument("--json", action="store_true", help="as JSON")
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
    drain = _command(
        commands,
        "drain",
        "let a slot finish what it has and stop; it stays stopped until `troupe restart`",
        "troupe drain demo-decode-0 --wait 60",
        _drain,
    )
    drain.add_argument("SLOT", help="for example demo-decode-0; `troupe status` lists them")
    _where(drain)
    drain.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait until it has happened, so long at most"
    )
    restart = _command(
        commands,
        "restart",
        "let a slot finish what it has and start it anew, also one that failed or was drained; or all of a model's, "
        "one after the other, with no request lost",
        "troupe restart demo-decode-0 --wait 60; troupe restart --model demo --role decode",
        _restart,
    )
    restart.add_argument("SLOT", nargs="?", help="for example demo-decode-0; `troupe status` lists them")
    restart.add_argument(
        "--model", metavar="NAME", help="all slots of this model, the next when the last is ready again"
    )
    restart.add_argument("--role", metavar="ROLE", help="only those of one role (without --model: of the only model)")
    restart.add_argument("--stop", action="store_true", help="end a rolling restart after the slot that it is at")
    _where(restart)
    restart.add_argument(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="wait until it has happened, so long at most (default: not for a slot, to the end for a model)",
    )
    handle = _command(
        commands,
        "handle",
        "have a slot's engine pause or resume, empty its prefix cache (flush), record a trace (profile), give back its "
        "GPU's memory (sleep) or take it again (wake); requests wait meanwhile",
        "troupe handle demo-decode-0 profile --seconds 3",
        _handle,
    )
    handle.add_argument("SLOT", help="for example demo-decode-0; `troupe status` lists them")
    handle.add_argument("VERB", choices=("pause", "resume", "flush", "profile", "sleep", "wake"))
    handle.add_argument(
        "--seconds", type=_seconds, default=0.0, metavar="S", help="for profile: how long (default: 5, at most 60)"
    )
    _where(handle)
    logs = _command(commands, "logs", "show what a slot has written to its log", "troupe logs demo-decode-0 -f", _logs)
    logs.add_argument("SLOT", help="a slot, or: supervisor, nats, prefork-cpu, prefork-cuda")
    _where(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on showing what is added, across restarts")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="begin so many lines before the end")
    logs.add_argument(
        "--raw", action="store_true", help="as it stands in the file: lines of JSON, and what is not ours"
    )
    logs.add_argument(
        "-p", "--previous", type=int, default=0, metavar="K", help="the K-th log before: of an earlier life, as a rule"
    )


def _add_watching(commands: Any) -> None:
    events = _command(
        commands,
        "events",
        "show what happened: the history that NATS keeps, and with -f what happens",
        "troupe events -f --since 10m --slot demo-decode-0",
        _events,
    )
    _where(events)
    events.add_argument("-f", "--follow", action="store_true", help="go on with what happens, until Ctrl-C")
    events.add_argument("--since", type=_span, metavar="SPAN", help="only what happened in the last 90s, 10m, 2h or 1d")
    events.add_argument(
        "-n", "--lines", type=_count, metavar="N", help="only the last so many (default: 50, or all with --since)"
    )
    events.add_argument("--slot", metavar="SLOT", help="only what happened to this slot")
    events.add_argument(
        "--kind",
        type=_kind,
        action="append",
        default=[],
        metavar="KIND",
        help="only this topic (actor, gate, restart, drill) or word of one (died, ready, ...); may be given again",
    )
    events.add_argument(
        "--json", action="store_true", help="as lines of JSON, the actors' own stages of loading among them"
    )
    top = _command(commands, "top", "watch slots, gates and what happens, live in a terminal", "troupe top", _top)
    _where(top)
    level = _command(
        commands,
        "log-level",
        "change how much a slot or the supervisor logs, until it is started again",
        "troupe log-level demo-decode-0 debug",
        _log_level,
    )
    level.add_argument("SLOT", help="a slot, or: supervisor")
    level.add_argument("LEVEL", choices=("debug", "info", "warning", "error"))
    _where(level)


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
    drill.add_argument("--drills", default=drills_file(), metavar="FILE", help="another configs/drills.yaml")


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


def _span(text: str) -> float:
    from supervisor.commands.events import since

    return since(text)


def _kind(text: str) -> str:
    from supervisor.commands.events import kind

    return kind(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def _times(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of times; 1 to 1000 is")
    return int(text)


def drills_file() -> str:
    """Say where the plan of drills lies: here, or where Troupe itself does."""
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


def _trace(options: argparse.Namespace) -> Code:
    from supervisor.commands.trace import trace

    return trace(options)


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


def _events(options: argparse.Namespace) -> Code:
    from supervisor.commands.events import events

    return events(options)


def _top(options: argparse.Namespace) -> Code:
    from supervisor.commands.top import top

    return top(options)


def _log_level(options: argparse.Namespace) -> Code:
    from supervisor.commands.log_level import log_level

    return log_level(options)


def _handle(options: argparse.Namespace) -> Code:
    from supervisor.commands.handle import handle

    return handle(options)


def _logs(options: argparse.Namespace) -> Code:
    from supervisor.commands.logs import logs

    return logs(options)


if __name__ == "__main__":
    sys.exit(main())
