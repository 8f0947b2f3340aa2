"""The load of a drill: so many client processes, over NATS and HTTP, and what their progress adds up to."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from messages import codec
from supervisor.drills.client import Task, Told
from supervisor.drills.records import Door
from supervisor.state import ClusterRecord

START_SECONDS: Final = 60.0
LINE_BYTES: Final = 65_536


class LoadError(Exception):
    """A client could not do its work; the text says why."""


class LoadSpec(Struct, kw_only=True, forbid_unknown_fields=True):
    """How much is asked: `requests` by each of the `clients`, of which `http` use HTTP, `tokens` each, in `timeout` s.

    `requests: 0` asks until the drill is over. `steady` is the share of the requests that must have ended before the
    fault, so that there is a before to compare with.
    """

    clients: Annotated[int, Meta(ge=1, le=256)] = 8
    http: Annotated[int, Meta(ge=0, le=256)] = 4
    requests: Annotated[int, Meta(ge=0)] = 100
    tokens: Annotated[int, Meta(ge=2)] = 64
    timeout: Annotated[float, Meta(gt=0)] = 30.0
    steady: Annotated[float, Meta(ge=0, le=0.9)] = 0.25

    @property
    def doors(self) -> list[Door]:
        """The door of each client; every second one HTTP until there are enough."""
        http = min(self.http, self.clients)
        doors: list[Door] = ["nats"] * self.clients
        for number in range(http):
            doors[(2 * number + 1) % self.clients if 2 * http <= self.clients else number] = "http"
        return doors


class _Client:
    """One client process; `current` is the request it is at, `first` whether its first delta has come."""

    def __init__(self, task: Task, process: asyncio.subprocess.Process) -> None:
        self.task = task
        self.process = process
        self.current = ""
        self.sent = 0.0
        self.first = False
        self.reader: asyncio.Task[None] | None = None
        self.complaints: asyncio.Task[bytes] | None = None


class Load:
    """All clients of a drill together. What they saw lies in `files` once they have ended."""

    def __init__(self, cluster: ClusterRecord, model: str, prompts: list[str], spec: LoadSpec, folder: Path) -> None:
        alias = next(alias for alias, name in cluster.models.items() if name == model)
        self._http = cluster.http.get(alias, "")
        # Without a door there is nobody to ask over HTTP.
        self.spec = spec if self._http else msgspec.structs.replace(spec, http=0)
        self._cluster = cluster
        self._model = model
        self._prompts = prompts
        self._folder = folder
        self._clients: list[_Client] = []
        self._news = asyncio.Event()
        self.files: list[Path] = []
        self.sent = 0
        self.ended: Counter[str] = Counter()
        self.tokens = 0
        self.gap = 0.0
        self.moved = 0

    @property
    def finished(self) -> int:
        """How many requests have had their end."""
        return sum(self.ended.values())

    @property
    def failed(self) -> int:
        """How many have ended otherwise than well."""
        return self.finished - self.ended["done"]

    @property
    def in_flight(self) -> int:
        """How many are under way."""
        return self.sent - self.finished

    @property
    def wanted(self) -> int:
        """How many are to be asked in all; 0 where there is no bound."""
        return self.spec.requests * self.spec.clients

    async def ask_once(self, name: str, *, reference: bool) -> None:
        """Have one client ask every prompt once over NATS, and wait for it. Raises LoadError if one goes wrong."""
        client = await self._start(name, "nats", len(self._prompts), 0, reference=reference)
        try:
            async with asyncio.timeout(self.spec.timeout + START_SECONDS):
                await self._ended(client)
        except TimeoutError:
            raise LoadError(f"client {name} was not answered within {self.spec.timeout + START_SECONDS:g} s") from None
        finally:
            await self._kill([client])

    async def start(self) -> None:
        """Start all clients."""
        for number, door in enumerate(self.spec.doors):
            await self._start(f"client-{number}-{door}", door, self.spec.requests, number)

    async def steady(self, seconds: float) -> None:
        """Wait until so much is done as is to be done before the fault, and most clients are mid-answer."""
        wanted = max(self.spec.clients, int(self.spec.steady * self.wanted))
        await self.until(lambda: self.finished >= wanted, seconds, f"{wanted} requests ended before the fault")
        await self.streaming(seconds)

    async def streaming(self, seconds: float) -> None:
        """Wait until most clients are in the middle of an answer."""

        def most() -> bool:
            living = [client for client in self._clients if client.process.returncode is None]
            return 4 * sum(client.first for client in living) >= 3 * len(living)

        await self.until(most, seconds, "most clients in the middle of an answer")

    async def answered(self, count: int, seconds: float) -> None:
        """Wait until so many more requests have ended well, or the load is over."""
        before = self.ended["done"]
        await self.until(lambda: self.ended["done"] >= before + count or self.over, seconds, f"{count} more answers")

    @property
    def over(self) -> bool:
        """Whether every client has asked all that it had to ask."""
        return all(client.process.returncode is not None for client in self._clients)

    async def until(self, check: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `check()` holds for what the clients have told. Raises LoadError after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not check():
                    self._news.clear()
                    await self._news.wait()
                    self._raise_failures()
        except TimeoutError:
            raise LoadError(f"not within {seconds:g} s: {what} ({self.finished} ended, {self.failed} badly)") from None

    def stop(self) -> None:
        """Have nothing more asked; what is under way goes on to its end."""
        for client in self._clients:
            if client.process.stdin is not None and not client.process.stdin.is_closing():
                with contextlib.suppress(OSError):
                    client.process.stdin.write(b"stop\n")

    async def finish(self) -> None:
        """Wait until all that is to be asked has had its end. Raises LoadError if no client moves any more."""
        while not self.over:
            self._news.clear()
            patience = self.spec.timeout + START_SECONDS
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                raise LoadError(f"no client has moved for {patience:g} s") from None
        for client in self._clients:
            await self._ended(client)

    async def close(self) -> None:
        """End every client, kindly first so that it writes its account; safe to call twice."""
        self.stop()
        living = [client for client in self._clients if client.process.returncode is None]
        for client in living:
            if client.process.stdin is not None:
                client.process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.spec.timeout if living else 0.1):
                await asyncio.gather(*(client.process.wait() for client in living))
        await self._kill(self._clients)

    async def _start(self, name: str, door: Door, requests: int, first: int, *, reference: bool = False) -> _Client:
        path = self._folder / f"{name}.jsonl"
        task = Task(
            client=name,
            door=door,
            nats=self._cluster.nats,
            cluster=self._cluster.cluster,
            model=self._model,
            http=self._http,
            prompts=self._prompts,
            tokens=self.spec.tokens,
            limit=self.spec.timeout,
            requests=requests,
            file=str(path),
            first=first,
            reference=reference,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "supervisor.drills.client",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the drill, which ends its clients itself.
            start_new_session=True,
        )
        assert process.stdin is not None and process.stderr is not None
        client = _Client(task, process)
        client.reader = asyncio.create_task(self._read(client))
        client.complaints = asyncio.create_task(process.stderr.read())
        process.stdin.write(codec.to_json(task) + b"\n")
        self.files.append(path)
        if not reference:
            self._clients.append(client)
        return client

    async def _read(self, client: _Client) -> None:
        assert client.process.stdout is not None
        while line := await client.process.stdout.readline():
            with contextlib.suppress(msgspec.DecodeError):
                self._note(client, codec.from_json(line, Told))
        await client.process.wait()
        client.first = False
        self._news.set()

    def _note(self, client: _Client, told: Told) -> None:
        if told.what == "sent":
            client.current, client.sent, client.first = told.id, told.at, False
            self.sent += not client.task.reference
        elif told.what == "first":
            client.first = True
        else:
            client.first = False
            if not client.task.reference:
                self.ended[told.outcome] += 1
                self.tokens += told.tokens
                self.gap = max(self.gap, told.gap)
                self.moved += told.attempts > 1
        self._news.set()

    def _raise_failures(self) -> None:
        for client in self._clients:
            if client.process.returncode not in (None, 0):
                raise LoadError(f"client {client.task.client} ended with exit code {client.process.returncode}")

    async def _ended(self, client: _Client) -> None:
        code = await client.process.wait()
        assert client.reader is not None and client.complaints is not None
        await client.reader
        if code:
            words = (await client.complaints).decode(errors="replace").strip().splitlines()
            raise LoadError(f"client {client.task.client} ended with exit code {code}: {words[-1] if words else ''}")

    async def _kill(self, clients: list[_Client]) -> None:
        for client in clients:
            if client.process.returncode is None:
                client.process.kill()
            await client.process.wait()
            waiting: list[Any] = [task for task in (client.reader, client.complaints) if task is not None]
            await asyncio.gather(*waiting, return_exceptions=True)
