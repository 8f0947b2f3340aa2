"""Is a frame a turn worth it? Tokens/s over NATS: a message a token (a subject a stream, one inbox) against frames.

    python -m benchmarks.bus [--streams 64] [--tokens 20000] [--rounds 5]

A sender process produces one token for each stream a turn; this process receives. Interleaved, medians.
"""

import argparse
import asyncio
import sys
import time
from typing import Any

import uvloop
from nats.aio.msg import Msg

from benchmarks.rig import cpu, machine, median, nats_server, save, table
from messages import codec
from messages.bus import Bus
from messages.config import Nats
from messages.frames import Frame, Item

WAYS = ("a subject a stream", "one inbox", "frames")
TOKEN = codec.pack_tokens([1_234])
STREAM_IDS = [f"6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f{number:04x}" for number in range(4_096)]


async def send(url: str, way: str, streams: int, tokens: int) -> None:
    bus = await Bus.connect(Nats(url=url), name="sender", wait=5)
    turns = tokens // streams
    for turn in range(turns):
        items = [Item(STREAM_IDS[stream], 0, turn, TOKEN) for stream in range(streams)]
        if way == "frames":
            await bus.publish("bench.out", codec.to_msgpack(Frame("sender-g1", turn + 1, 1, items)))
        else:
            for stream, item in enumerate(items):
                await bus.publish(f"bench.out.{stream}", codec.to_msgpack(item))
        await asyncio.sleep(0)
    await bus.flush()
    await bus.close()


async def receive(url: str, way: str, streams: int, tokens: int, server: int) -> dict[str, Any]:
    bus = await Bus.connect(Nats(url=url), name="receiver", wait=5)
    got = [0] * streams
    numbers = {name: number for number, name in enumerate(STREAM_IDS[:streams])}
    whole = (tokens // streams) * streams
    done = asyncio.Event()
    first = 0.0

    def take(item: Item) -> None:
        got[numbers[item.request]] += codec.token_count(item.tokens)

    async def on_item(msg: Msg) -> None:
        nonlocal first
        first = first or time.perf_counter()
        take(codec.from_msgpack(msg.data, Item))
        if sum(got) >= whole:
            done.set()

    async def on_frame(msg: Msg) -> None:
        nonlocal first
        first = first or time.perf_counter()
        for item in codec.from_msgpack(msg.data, Frame).items:
            take(item)
        if sum(got) >= whole:
            done.set()

    if way == "frames":
        await bus.subscribe("bench.out", on_frame, pending=1 << 20)
    elif way == "one inbox":
        await bus.subscribe("bench.out.*", on_item, pending=1 << 20)
    else:
        for stream in range(streams):
            await bus.subscribe(f"bench.out.{stream}", on_item, pending=1 << 20)
    await bus.flush()
    began = (time.process_time(), cpu(server))
    command = [sys.executable, "-m", "benchmarks.bus", "--send", way, "--url", url]
    sender = await asyncio.create_subprocess_exec(*command, "--streams", str(streams), "--tokens", str(tokens))
    async with asyncio.timeout(120):
        await done.wait()
    seconds = time.perf_counter() - first
    used = (time.process_time() - began[0], cpu(server) - began[1])
    assert await sender.wait() == 0
    await bus.close()
    return {
        "tokens/s": whole / seconds,
        "receiver µs/token": used[0] / whole * 1e6,
        "server µs/token": used[1] / whole * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="example: python -m benchmarks.bus")
    parser.add_argument("--streams", type=int, default=64, help="streams at once (at most 4096)")
    parser.add_argument("--tokens", type=int, default=128_000, help="tokens in each round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all three ways")
    parser.add_argument("--send", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        uvloop.run(send(options.url, options.send, options.streams, options.tokens))
        return
    about = machine()
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with nats_server() as (url, pid):
        for _ in range(options.rounds):
            for way in WAYS:
                seen[way].append(uvloop.run(receive(url, way, options.streams, options.tokens, pid)))
    rows = [{"way": way} | {key: median([run[key] for run in runs]) for key in runs[0]} for way, runs in seen.items()]
    inbox = median([run["tokens/s"] for run in seen["one inbox"]])
    rows = [
        row | {"against one inbox": median([run["tokens/s"] for run in seen[str(row["way"])]]) / inbox} for row in rows
    ]
    print(table(rows))
    save(
        "bus", {"machine": about, "streams": options.streams, "tokens": options.tokens, "rounds": seen, "medians": rows}
    )


if __name__ == "__main__":
    main()
