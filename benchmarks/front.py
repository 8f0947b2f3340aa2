"""What does everything in front of the engine cost? Troupe with an infinitely fast simulated engine over HTTP.

    python -m benchmarks.front [--at 1 16 64] [--requests 600] [--rounds 5] [--starts 1] [--against FOLDER]

Chat requests of about 128 tokens in, 64 out, streamed; the client in its own process, TCP_NODELAY both ways; beside
it, interleaved in the same run, a bare gateway (`bare_gateway.py`). Everything shares the machine's cores.

With `--against`, the folder of another commit's checkout (`git worktree add FOLDER COMMIT`), it is that commit instead
of the bare gateway: both are run by this environment's Python, in turns, and each round gives a ratio of its own.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import uvloop

from benchmarks.rig import ROOT, cpu, machine, median, nats_server, percentile, save, table
from messages import procfs

TOKENIZER = ROOT / "models" / "tiny"
TOKENS_OUT = 64
KINDS: dict[str, bool] = {"aggregated": False, "prefill + decode": True}
"""The clusters that are measured, and whether they have prefill actors."""
THIS, THAT = "this", "that"
"""What the two checkouts are called in a comparison."""


class System(NamedTuple):
    """A system under test: where it answers, and its processes by name."""

    port: int
    processes: dict[str, int]


def prompt(tokens: int, number: int) -> str:
    """A text of about so many tokens that differs from request to request."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    text = f"request {number}: " + "the quick brown fox jumps over the lazy dog " * tokens
    return str(tokenizer.decode(tokenizer.encode(text).ids[: tokens - 12]))


class Client(asyncio.Protocol):
    """One keep-alive connection that asks, and notes when each event of the stream came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tail = b""
        self.done: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        events = data.count(b"data: ")
        self.times += [now] * events
        self.tail = (self.tail + data)[-64:]
        if self.tail.endswith(b"0\r\n\r\n") and self.done is not None and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed midway"))

    async def ask(self, request: bytes) -> list[float]:
        self.times, self.tail = [], b""
        self.done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self.transport.write(request)
        async with asyncio.timeout(60):
            await self.done
        if b"[DONE]" not in self.tail:
            raise SystemExit(f"a stream ended with {self.tail!r}")
        return [at - began for at in self.times]


async def load(port: int, model: str, at_once: int, count: int) -> dict[str, Any]:
    """Ask `count` times, so many at once, and tell what a client saw: seconds throughout."""
    loop = asyncio.get_running_loop()
    bodies = [_request(port, model, number) for number in range(min(count, 64))]
    left = iter(range(count))
    ttft: list[float] = []
    gaps: list[float] = []

    async def one() -> None:
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        for number in left:
            times = await client.ask(bodies[number % len(bodies)])
            ttft.append(times[0])
            gaps.extend(after - before for before, after in zip(times, times[1:], strict=False))
        client.done = None
        client.transport.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(at_once)))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "ttft": ttft, "gaps": gaps}


def _request(port: int, model: str, number: int) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": prompt(128, number)}], "stream": True}
    data = json.dumps(body | {"max_tokens": TOKENS_OUT, "temperature": 0}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


@contextlib.contextmanager
def bare() -> Iterator[System]:
    """The bare gateway and its worker."""
    with nats_server() as (url, server):
        module = [sys.executable, "-m", "benchmarks.bare_gateway"]
        worker = subprocess.Popen([*module, "worker", "--nats", url])
        command = [*module, "gateway", "--nats", url, "--tokenizer", str(TOKENIZER / "tokenizer.json")]
        gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert gateway.stdout is not None
            yield System(int(gateway.stdout.readline()), {"gateway": gateway.pid, "worker": worker.pid, "nats": server})
        finally:
            for process in (gateway, worker):
                process.kill()
                process.wait()


@contextlib.contextmanager
def troupe(prefill: bool, itl: float = 0.0, context_length: int | None = None, code: Path = ROOT) -> Iterator[System]:
    """A whole cluster, supervisor and gate included, run from the checkout `code`.

    `itl` is the engine's time between tokens in seconds.
    """
    parts: dict[str, Any] = {"processor": {"http": {"port": 0}}, "decode": {"capacity": 256}}
    if prefill:
        parts["prefill"] = {"capacity": 256}
    model = {"name": "bench", "engine": "simulated", "tokenizer": str(TOKENIZER), "cast": parts}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.yaml"
        config.write_bytes(
            msgspec.yaml.encode(
                {"models": [model | {"simulated": {"ttft": 0.0, "itl": itl}, "context_length": context_length}]}
            )
        )
        command = [str(Path(sys.executable).parent / "troupe")]
        state = ["--state", str(Path(folder) / "state")]
        # `python -m` looks in the working folder first, console scripts in PYTHONPATH.
        there: dict[str, Any] = {"cwd": code, "env": os.environ | {"PYTHONPATH": str(code)}}
        up = subprocess.Popen(
            [*command, "up", str(config), *state], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **there
        )
        try:
            waited = [*command, "status", "--json", "--wait-ready", "30", *state]
            status = json.loads(_said(waited, **there))
            slots = {slot["slot"].removeprefix("bench-"): slot["pid"] for slot in status["slots"]}
            port = int(status["http"]["bench"].rpartition(":")[2].rstrip("/"))
            yield System(port, slots | {"supervisor": up.pid, "nats": status["nats_pid"]})
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)


def _said(command: list[str], **there: Any) -> str:
    """Run until it succeeds (the cluster may just be starting), within half a minute."""
    deadline = time.monotonic() + 30
    while True:
        run = subprocess.run(command, capture_output=True, text=True, **there)
        if run.returncode == 0:
            return str(run.stdout)
        if time.monotonic() > deadline:
            raise SystemExit(run.stdout + run.stderr)


def measure(name: str, system: System, at_once: int, count: int) -> dict[str, Any]:
    """Load a system from a client process of its own; one row of the table."""
    before = {process: cpu(pid) for process, pid in system.processes.items()}
    with tempfile.NamedTemporaryFile() as told:
        client = ["--client", str(system.port), str(at_once), str(count), told.name]
        subprocess.run([sys.executable, "-m", "benchmarks.front", *client], check=True)
        seen = json.loads(told.read())
    tokens = count * TOKENS_OUT
    spent = {process: (cpu(pid) - before[process]) / tokens * 1e6 for process, pid in system.processes.items()}
    return {
        "system": name,
        "at once": at_once,
        "requests/s": count / seen["seconds"],
        "TTFT p50 ms": percentile(seen["ttft"], 0.5) * 1e3,
        "TTFT p99 ms": percentile(seen["ttft"], 0.99) * 1e3,
        "ITL p99 ms": percentile(seen["gaps"], 0.99) * 1e3,
        "CPU µs/token": sum(spent.values()),
        "CPU": {process: round(each, 2) for process, each in spent.items()},
        "RSS MiB": {process: procfs.rss_bytes(pid) >> 20 for process, pid in system.processes.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="example: python -m benchmarks.front")
    parser.add_argument("--at", type=int, nargs="+", default=[1, 16, 64], help="requests at once")
    parser.add_argument(
        "--requests", type=int, default=600, help="requests in each measurement (a quarter of it for one at once)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all systems")
    parser.add_argument(
        "--starts", type=int, default=1, help="how often all are started anew: one start may run better than another"
    )
    parser.add_argument("--name", help="name of the result's file (front, or front-against)")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, to be compared with")
    parser.add_argument("--client", nargs=4, metavar=("PORT", "AT", "COUNT", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        *numbers, told = options.client
        port, at_once, count = map(int, numbers)
        Path(told).write_text(json.dumps(uvloop.run(load(port, "bench", at_once, count))))
        return
    if options.against is not None and not (options.against / "supervisor").is_dir():
        raise SystemExit(f"--against {options.against}: not a checkout of Troupe, there is no supervisor/ in it")
    about = machine()
    runs: list[dict[str, Any]] = []
    for start in range(options.starts):
        with started(options.against) as systems:
            runs += [{"start": start} | run for run in _rounds(systems, options)]
    medians = [_median([run for run in runs if (run["system"], run["at once"]) == key]) for key in _keys(runs)]
    result = {"machine": about, "runs": runs, "medians": medians}
    if options.against is None:
        _show(medians, options.at[-1])
    else:
        result |= {"against": _commit(options.against), "ratios": (ratios := _ratios(runs))}
        print(table(ratios))
    save(options.name or ("front" if options.against is None else "front-against"), result)


@contextlib.contextmanager
def started(against: Path | None) -> Iterator[dict[str, System]]:
    """Start everything that is measured side by side, by name."""
    with contextlib.ExitStack() as stack:
        if against is None:
            systems = {"bare gateway": stack.enter_context(bare())}
            systems |= {f"troupe, {kind}": stack.enter_context(troupe(prefill)) for kind, prefill in KINDS.items()}
        else:
            systems = {
                f"{who}, {kind}": stack.enter_context(troupe(prefill, code=code))
                for kind, prefill in KINDS.items()
                for who, code in {THAT: against.resolve(), THIS: ROOT}.items()
            }
        yield systems


def _rounds(systems: dict[str, System], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all systems, round after round, every other round the other way about."""
    for name, system in systems.items():
        measure(name, system, 8, 64)
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        order = list(systems.items())[:: -1 if number % 2 else 1]
        for at_once in options.at:
            count = options.requests if at_once > 1 else options.requests // 4
            runs += [{"round": number} | measure(name, system, at_once, count) for name, system in order]
    return runs


def _show(medians: list[dict[str, Any]], most_at_once: int) -> None:
    print(
        table(
            [
                {key: value for key, value in row.items() if key not in ("start", "round", "CPU", "RSS MiB")}
                for row in medians
            ]
        )
    )
    for row in medians:
        if row["at once"] == most_at_once:
            print(row["system"], "CPU µs/token:", row["CPU"], "RSS MiB:", row["RSS MiB"])


def _ratios(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the two checkouts round by round; a row for each kind and load, with the median over the rounds.

    Beside the requests a second stand the least and the most of the rounds.
    """
    rows = []
    for kind in KINDS:
        for at_once in sorted({run["at once"] for run in runs}):
            those, these = (
                sorted(
                    (run for run in runs if run["system"] == f"{who}, {kind}" and run["at once"] == at_once),
                    key=lambda run: (int(run["start"]), int(run["round"])),
                )
                for who in (THAT, THIS)
            )
            pairs = list(zip(these, those, strict=True))
            rate = [this["requests/s"] / that["requests/s"] for this, that in pairs]
            row = {"this to that": kind, "at once": at_once, "requests/s": median(rate)}
            row["least"], row["most"] = min(rate), max(rate)
            for what in ("TTFT p50 ms", "ITL p99 ms", "CPU µs/token"):
                row[what] = median([this[what] / that[what] for this, that in pairs])
            spent = [this["CPU"]["processor-0"] / that["CPU"]["processor-0"] for this, that in pairs]
            rows.append(row | {"processor's CPU": median(spent)})
    return rows


def _commit(folder: Path) -> str:
    """Name the commit of a checkout."""
    run = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return run.stdout.strip() or "no commit"


def _keys(runs: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return sorted({(run["system"], run["at once"]) for run in runs}, key=lambda key: (key[1], key[0]))


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = sorted(runs, key=lambda run: run["requests/s"])[len(runs) // 2]
    numbers = {key: median([run[key] for run in runs]) for key, value in middle.items() if isinstance(value, float)}
    return middle | numbers


if __name__ == "__main__":
    main()
