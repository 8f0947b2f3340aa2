"""A small loopback proxy before NATS: it knows each connection by the name that it gives itself, and can hold it up.

A client of NATS says who it is in the first line that it sends (`CONNECT {"name": ...}`). By that name a connection can
be cut off: nothing goes through in either direction, and no new one of that name is let in, as with a cable pulled out.
Or it can be slowed: everything goes through so many seconds late.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

CHUNK: Final = 65_536
LINE: Final = 65_536
FIRST_SECONDS: Final = 10.0
HELD: Final = 1_024
"""Chunks that may be under way in one direction of a slowed connection."""

Fits = Callable[[str], bool]


class Connection:
    """One connection through the proxy; `name` is what the client calls itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.flows = asyncio.Event()
        self.flows.set()
        self.delay = 0.0
        self.bytes = 0


class Proxy:
    """The proxy itself, listening on a free port of the loopback; `held_back` counts connections that it refused."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None and address.port is not None
        self._to = (address.hostname, address.port)
        self._cut: Fits = _nobody
        self._slow: tuple[Fits, float] = (_nobody, 0.0)
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: list[Connection] = []
        self.held_back = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LINE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End every connection."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, fits: Fits) -> int:
        """Cut off all connections whose name fits, those to come as well; return how many there are now."""
        self._cut = fits
        hit = [connection for connection in self.connections if fits(connection.name)]
        for connection in hit:
            connection.flows.clear()
        return len(hit)

    def slow(self, fits: Fits, seconds: float) -> int:
        """Let everything of these connections come so late, in both directions; return how many there are now."""
        self._slow = (fits, seconds)
        hit = [connection for connection in self.connections if fits(connection.name)]
        for connection in hit:
            connection.delay = seconds
        return len(hit)

    def mend(self) -> None:
        """Let everything through again."""
        self._cut, self._slow = _nobody, (_nobody, 0.0)
        for connection in self.connections:
            connection.delay = 0.0
            connection.flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on the greeting, learn the client's name, then pass on everything."""
        up_reader, up_writer = await asyncio.open_connection(*self._to, limit=LINE)
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                writer.write(await up_reader.readline())
                await writer.drain()
                first = await reader.readline()
            connection = Connection(_name_in(first))
            if self._cut(connection.name):
                self.held_back += 1
                return
            fits, delay = self._slow
            connection.delay = delay if fits(connection.name) else 0.0
            self.connections.append(connection)
            up_writer.write(first)
            try:
                async with asyncio.TaskGroup() as group:
                    there = group.create_task(_pump(reader, up_writer, connection))
                    back = group.create_task(_pump(up_reader, writer, connection))
                    await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
                    there.cancel()
                    back.cancel()
            finally:
                self.connections.remove(connection)
        finally:
            up_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection) -> None:
    """Pass on one direction, each chunk when its time has come; a cut connection keeps what it has."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD)

    async def take_in() -> None:
        while chunk := await reader.read(CHUNK):
            await under_way.put((time.monotonic() + connection.delay, chunk))
        await under_way.put((0.0, b""))

    taking = asyncio.ensure_future(take_in())
    try:
        while True:
            due, chunk = await under_way.get()
            if not chunk:
                return
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await connection.flows.wait()
            writer.write(chunk)
            await writer.drain()
            connection.bytes += len(chunk)
    except OSError:
        return
    finally:
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await taking


def _name_in(line: bytes) -> str:
    if not line.startswith(b"CONNECT "):
        return ""
    return str(json.loads(line[len(b"CONNECT ") :]).get("name", ""))


def _nobody(name: str) -> bool:
    return False
