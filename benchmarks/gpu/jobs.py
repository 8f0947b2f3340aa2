"""What load is asked for and what was seen of it, as it passes between the benchmark and those who make load."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from benchmarks.gpu.streams import prompts
from benchmarks.rig import percentile

MARK = b"@@ "
"""Begins a line that is ours on the standard output of a process in which SGLang may also write there."""

LINE_LIMIT = 1 << 27
CONNECT = 0.3
"""Seconds between the order and the start, in which prompts are made and connections opened."""


class Job(msgspec.Struct, kw_only=True):
    """So many streams at once, each `waves` times in a row, of random prompts of `length` ids; begun at the monotonic
    time `at` (seconds, one clock for all processes of a machine)."""

    streams: int
    waves: int = 1
    length: int
    tokens: int
    seed: int
    vocabulary: int
    at: float = 0.0
    deadline: float = 240.0

    def prompts(self) -> list[list[list[int]]]:
        """For each stream its prompts, one a wave."""
        made = prompts(self.seed, self.streams * self.waves, self.length, self.length, self.vocabulary)
        return [made[at :: self.streams] for at in range(self.streams)]

    def split(self, processes: int) -> "list[Job]":
        """Deal the streams out to so many processes, or fewer where there are not enough, each with its own prompts."""
        shares = [(self.streams + number) // processes for number in range(processes)]
        return [
            msgspec.structs.replace(self, streams=share, seed=self.seed * 64 + number)
            for number, share in enumerate(shares)
            if share
        ]


class Seen(msgspec.Struct, array_like=True):
    """One stream as its client saw it: times in seconds of the monotonic clock, gaps between pieces in microseconds."""

    asked: float
    first: float
    last: float
    tokens: int
    pieces: int
    gaps: list[int]


class Watch:
    """Notes one stream's pieces as they come."""

    def __init__(self) -> None:
        self.asked = self.first = self.last = time.monotonic()
        self.tokens = self.pieces = 0
        self.gaps: list[int] = []

    def piece(self, tokens: int) -> None:
        """Note a piece that has come now."""
        now = time.monotonic()
        if self.pieces:
            self.gaps.append(round((now - self.last) * 1e6))
        else:
            self.first = now
        self.last = now
        self.tokens += tokens
        self.pieces += 1

    def seen(self) -> Seen:
        """What there is to tell."""
        return Seen(self.asked, self.first, self.last, self.tokens, self.pieces, self.gaps)


Ask = Callable[[list[int], int], Awaitable[Seen]]
"""Has one prompt continued by exactly so many tokens."""


async def load(job: Job, ask: Sequence[Ask]) -> list[Seen]:
    """Do a job, stream n by the n-th way of asking; raises TimeoutError, or whatever a stream raises."""

    async def stream(own: list[list[int]], one: Ask) -> list[Seen]:
        return [await one(prompt, job.tokens) for prompt in own]

    made = job.prompts()
    await asyncio.sleep(max(0.0, job.at - time.monotonic()))
    async with asyncio.timeout(job.deadline), asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(own, one)) for own, one in zip(made, ask, strict=True)]
    return [seen for task in tasks for seen in task.result()]


def row(seen: Sequence[Seen], wanted: int) -> dict[str, float]:
    """What clients saw of all streams of a job together; raises AssertionError where a stream is not whole."""
    short = [each.tokens for each in seen if each.tokens != wanted]
    if short:
        raise AssertionError(f"{len(short)} streams are not {wanted} tokens long; the first has {short[0]}")
    ttft = [each.first - each.asked for each in seen]
    itl = [(each.last - each.first) / max(1, each.tokens - 1) for each in seen]
    gaps = [gap for each in seen for gap in each.gaps]
    seconds = max(each.last for each in seen) - min(each.asked for each in seen)
    return {
        "tokens/s": sum(each.tokens for each in seen) / seconds,
        "seconds": seconds,
        "TTFT p50 ms": percentile(ttft, 0.5) * 1e3,
        "TTFT p99 ms": percentile(ttft, 0.99) * 1e3,
        "ITL p50 ms": percentile(itl, 0.5) * 1e3,
        "ITL p99 ms": percentile(itl, 0.99) * 1e3,
        "gap p99 ms": percentile(gaps, 0.99) / 1e3,
        "tokens a piece": sum(each.tokens for each in seen) / max(1, sum(each.pieces for each in seen)),
    }


async def obey_by(ask: Ask) -> None:
    """Obey with one way to ask, that takes any number of streams at once."""

    async def do(job: Job) -> list[Seen]:
        return await load(job, [ask] * job.streams)

    await obey(do)


async def obey(do: Callable[[Job], Awaitable[list[Seen]]]) -> None:
    """Do the jobs that come on standard input, line by line, and answer each on standard output, until it is closed."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(LINE_LIMIT)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tell({"ready": os.getpid()})
    while line := await reader.readline():
        try:
            seen = await do(msgspec.json.decode(line, type=Job))
            await asyncio.to_thread(tell, {"seen": seen})
        except Exception as error:
            causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            tell({"failed": f"{type(causes[0]).__name__}: {causes[0]}"[:2_000]})


def tell(answer: dict[str, Any]) -> None:
    """Say something to who started this process."""
    sys.stdout.buffer.write(MARK + msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


class Worker:
    """A process of ours that obeys (see `obey`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, words: list[str], log: int, env: dict[str, str] | None = None) -> "Worker":
        """Start `python -m` with these words, its errors into a file."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=os.environ | (env or {}),
            limit=LINE_LIMIT,
            process_group=0,
        )
        return cls(process)

    async def answer(self, wait: float) -> dict[str, Any]:
        """Wait for its next answer; raises TimeoutError, or RuntimeError where it fails or has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(wait):
            while line := await self.process.stdout.readline():
                if line.startswith(MARK):
                    said: dict[str, Any] = json.loads(line[len(MARK) :])
                    if "failed" in said:
                        raise RuntimeError(said["failed"])
                    return said
        raise RuntimeError(f"process {self.pid} has ended: {await self.process.wait()}")

    async def do(self, job: Job) -> list[Seen]:
        """Have a job done."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(job) + b"\n")
        await self.process.stdin.drain()
        return msgspec.convert((await self.answer(job.deadline + 30))["seen"], list[Seen])

    async def stop(self) -> None:
        """End it: by the end of its input, and if that is not heard by force."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        await end_group(self.process, 10)


async def end_group(process: asyncio.subprocess.Process, wait: float) -> None:
    """Wait for a process that leads its group, `wait` seconds, and then end what is left of the group.

    Who is gone counts as there while a child of his holds his standard output, hence the bound on the second wait.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            await process.wait()
