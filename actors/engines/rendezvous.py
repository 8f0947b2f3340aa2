"""Where simulated prefill and decode meet: a TCP stand-in for the bootstrap server and the KV transfer.

Decode connects to prefill's bootstrap address once and writes the number of each room it has reserved; prefill writes
the number back when the prompt's blocks are "transferred", with 1 in the last byte if it failed. If prefill dies the
connection breaks, and every room on it fails at once, as NIXL's transfers do.
"""

import asyncio
import contextlib
import socket
import struct
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

from messages.work import Bootstrap

_ROOM: Final = struct.Struct("<QB")
EARLY_ROOMS: Final = 16_384
CONNECT_SECONDS: Final = 2.0
FAKE_HOST: Final = "2.2.2.2"


class BrokenRendezvousError(Exception):
    """The other side of a hand-over is gone or has given up."""


class Room:
    """One meeting, as prefill sees it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.writer: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        self.told = False

    def reserved(self) -> "asyncio.Future[None]":
        """Completes when decode has reserved room for the blocks."""
        return asyncio.ensure_future(self._reserved())

    async def _reserved(self) -> None:
        await asyncio.shield(self.writer)

    def transferred(self, failed: bool = False) -> None:
        """Tell decode that its blocks are there, or never will be."""
        if self.writer.done() and not self.told:
            self.told = True
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.result().write(_ROOM.pack(self.number, failed))


class PrefillSide:
    """Prefill's meeting place; its port is bound at once, served after `open`."""

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._rooms: dict[int, Room] = {}
        self._early: OrderedDict[int, asyncio.StreamWriter] = OrderedDict()
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Start to listen."""
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    async def close(self) -> None:
        """Stop to listen and hang up."""
        for writer in self._writers:
            writer.close()
        if self._server is not None:
            self._server.close()

    @contextlib.asynccontextmanager
    async def room(self, number: int) -> AsyncIterator[Room]:
        """Hold a room for the time of its computation; if it is left without a transfer, decode is told so."""
        room = self._rooms[number] = Room(number)
        if (writer := self._early.pop(number, None)) is not None:
            room.writer.set_result(writer)
        try:
            yield room
        finally:
            room.transferred(failed=True)
            room.writer.cancel()
            del self._rooms[number]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                number, _ = _ROOM.unpack(await reader.readexactly(_ROOM.size))
                if (room := self._rooms.get(number)) is None:
                    self._early[number] = writer
                    if len(self._early) > EARLY_ROOMS:
                        self._early.popitem(last=False)
                elif not room.writer.done():
                    room.writer.set_result(writer)
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()


class DecodeSide:
    """Decode's connections to prefill actors, one an address."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], asyncio.Task[Line]] = {}

    def meet(self, at: Bootstrap) -> "asyncio.Future[None] | None":
        """Reserve a room; completes when its blocks are there, or with BrokenRendezvousError."""
        if at.host == FAKE_HOST:
            return None
        return asyncio.ensure_future(self._meet(at))

    async def _meet(self, at: Bootstrap) -> None:
        address = (at.host, at.port)
        connecting = self._lines.get(address)
        if connecting is None or (connecting.done() and (connecting.exception() or connecting.result().broken)):
            connecting = self._lines[address] = asyncio.ensure_future(Line.connect(at.host, at.port))
        line = await asyncio.shield(connecting)
        await line.meet(at.room)

    async def close(self) -> None:
        """Hang up everywhere."""
        for connecting in self._lines.values():
            if connecting.done() and not connecting.exception():
                connecting.result().writer.close()
            connecting.cancel()


class Line:
    """One connection from decode to a prefill actor."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name = name
        self.writer = writer
        self.broken = False
        self._rooms: dict[int, asyncio.Future[None]] = {}
        self._reading = asyncio.ensure_future(self._read(reader))

    @classmethod
    async def connect(cls, host: str, port: int) -> "Line":
        """Connect; raises BrokenRendezvousError if nobody is there."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise BrokenRendezvousError(f"prefill at {host}:{port} cannot be reached: {error}") from None
        return cls(f"{host}:{port}", reader, writer)

    async def meet(self, room: int) -> None:
        """Reserve a room and wait for its blocks; the caller has the deadline."""
        if self.broken:
            raise BrokenRendezvousError(f"prefill at {self.name} is gone")
        future = self._rooms[room] = asyncio.get_running_loop().create_future()
        try:
            self.writer.write(_ROOM.pack(room, 0))
            await future
        finally:
            self._rooms.pop(room, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, failed = _ROOM.unpack(await reader.readexactly(_ROOM.size))
                future = self._rooms.get(number)
                if future is None or future.done():
                    continue
                if failed:
                    future.set_exception(BrokenRendezvousError(f"prefill at {self.name} gave up"))
                else:
                    future.set_result(None)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.broken = True
            self.writer.close()
            for future in self._rooms.values():
                if not future.done():
                    future.set_exception(BrokenRendezvousError(f"prefill at {self.name} is gone"))
