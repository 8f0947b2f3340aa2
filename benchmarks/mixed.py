"""Do long prompts disturb short streams? 16 short streams, alone and beside prompts of 1,024 and 8,000 tokens.

    python -m benchmarks.mixed [--seconds 5] [--rounds 5]

A whole cluster with a simulated engine (a token each 5 ms), over HTTP. The windows alternate within each round: nobody
beside, one client with prompts of 1,024 tokens after another, the same with 8,000; and, as a control, a process that
has nothing to do with the cluster and takes as much CPU as the 8,000 did. Told are the long prompts' TTFT and the short
streams' gaps between tokens: where everything shares a few cores, the control says what only the cores explain.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvloop

from benchmarks.front import Client, prompt, troupe
from benchmarks.rig import cpu, machine, median, percentile, save, table

STREAMS = 16
LONG = (0, 1_024, 8_000)
BUSY = """
import sys, time
period, share = 0.05, float(sys.argv[1])
while True:
    began = time.perf_counter()
    while time.perf_counter() - began < period * share:
        pass
    time.sleep(period * (1 - share))
"""


def _request(port: int, tokens: int, number: int, out: int) -> bytes:
    body = {"model": "bench", "messages": [{"role": "user", "content": prompt(tokens, number)}], "stream": True}
    data = json.dumps(body | {"max_tokens": out, "temperature": 0}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


async def window(port: int, short: list[bytes], long: list[bytes], seconds: float) -> dict[str, Any]:
    """Load a cluster for so many seconds; what the short streams and the long prompts saw, in seconds."""
    loop = asyncio.get_running_loop()
    until = time.monotonic() + seconds
    gaps: list[float] = []
    ttft: list[float] = []

    async def ask(requests: list[bytes], first: int, is_long: bool) -> None:
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        number = first
        while time.monotonic() < until:
            times = await client.ask(requests[number % len(requests)])
            number += 1
            if is_long:
                ttft.append(times[0])
            else:
                gaps.extend(after - before for before, after in zip(times, times[1:], strict=False))
        client.done = None
        client.transport.close()

    await asyncio.gather(*(ask(short, at, False) for at in range(STREAMS)), *([ask(long, 0, True)] if long else []))
    return {"gaps": gaps, "ttft": ttft}


@contextlib.contextmanager
def busy(share: float) -> Iterator[None]:
    """Keep this share of one core busy beside."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(min(share, 0.99))])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="mixed", help="name of the result's file")
    options = parser.parse_args()
    about, runs = machine(), list[dict[str, Any]]()
    with troupe(False, itl=0.005, context_length=16_384) as system:
        short = [_request(system.port, 64, number, 64) for number in range(32)]
        long = {size: [_request(system.port, size, number, 1) for number in range(16)] for size in LONG if size}
        uvloop.run(window(system.port, short, [], 1.0))

        def run(beside: str, long: list[bytes]) -> float:
            """Load it for one window, keep what was seen, and return how much of a core all of it took."""
            pids, began = [*system.processes.values()], time.process_time()
            before = sum(map(cpu, pids))
            seen = uvloop.run(window(system.port, short, long, options.seconds))
            taken: float = (sum(map(cpu, pids)) - before + time.process_time() - began) / options.seconds
            runs.append(
                {
                    "beside": beside,
                    "long ones": len(seen["ttft"]),
                    "TTFT p50 ms": percentile(seen["ttft"], 0.5) * 1e3,
                    "TTFT p99 ms": percentile(seen["ttft"], 0.99) * 1e3,
                    "short ITL p50 ms": percentile(seen["gaps"], 0.5) * 1e3,
                    "short ITL p99 ms": percentile(seen["gaps"], 0.99) * 1e3,
                    "cores taken": taken,
                }
            )
            return taken

        for _ in range(options.rounds):
            taken = {size: run(f"prompts of {size:,}" if size else "nobody", long.get(size, [])) for size in LONG}
            with busy(taken[max(LONG)] - taken[0]):
                run("a busy process", [])
    rows = [_medians([run for run in runs if run["beside"] == beside]) for beside in dict.fromkeys(map(_beside, runs))]
    print(table(rows))
    save(options.name, {"machine": about, "runs": runs, "medians": rows})


def _beside(run: dict[str, Any]) -> str:
    return str(run["beside"])


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return runs[0] | {key: median([run[key] for run in runs]) for key in runs[0] if key != "beside"}


if __name__ == "__main__":
    main()
