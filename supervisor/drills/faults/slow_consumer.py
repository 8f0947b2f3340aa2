"""A client that stops reading: it asks for a long answer, on NATS or over HTTP, and takes none of it off its socket."""

import asyncio
import fcntl
import json
import socket
import struct
import termios
from typing import Final
from urllib.parse import urlsplit

from messages import codec
from messages.ids import new_request_id
from messages.subjects import Subjects
from messages.submit import Completion
from supervisor.drills.faults.fault import Fault, ImpossibleError, MissedError

TOKENS: Final = 2_000
SECONDS: Final = 3.0
BUFFER: Final = 4_096


class SlowConsumer(Fault):
    """Two clients that read nothing: one on each door, as far as they are open."""

    name = "slow_consumer"
    _sockets: list[socket.socket]

    async def aim(self) -> str:
        """See which doors there are."""
        self._sockets = []
        nats, self._http = self.stage.record.nats, self.stage.record.http.get(self.stage.model.slug, "")
        self._nats = "" if nats.user or nats.credentials or nats.tls else nats.urls[0]
        if not self._nats and not self._http:
            raise ImpossibleError("there is no HTTP, and NATS wants credentials that a bare socket cannot give")
        doors = " and ".join(name for name, url in (("NATS", self._nats), ("HTTP", self._http)) if url)
        return f"clients that ask for {TOKENS} tokens over {doors} and read nothing"

    async def inject(self) -> None:
        """Ask."""
        await asyncio.to_thread(self._ask)

    def _ask(self) -> None:
        model, most = self.stage.model, TOKENS
        if self.stage.model.context_length:
            most = min(TOKENS, self.stage.model.context_length // 2)
        if self._nats:
            connection = self._connect(self._nats)
            body = Completion(
                model=model.name, prompt="Read me", id=new_request_id(), max_tokens=most, ignore_eos=True, timeout=60
            )
            subject = Subjects(self.stage.record.cluster).submit(model.slug, "completion")
            payload = codec.to_json(body)
            said = f'CONNECT {{"verbose":false}}\r\nSUB _INBOX.deaf 1\r\nPUB {subject} _INBOX.deaf {len(payload)}\r\n'
            connection.sendall(said.encode() + payload + b"\r\n")
        if self._http:
            connection = self._connect(self._http)
            asked = {"model": model.name, "prompt": "Read me", "max_tokens": most, "ignore_eos": True, "stream": True}
            data = json.dumps(asked | {"timeout": 60}).encode()
            head = "POST /v1/completions HTTP/1.1\r\nHost: deaf\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def _connect(self, url: str) -> socket.socket:
        address = urlsplit(url)
        connection = socket.socket()
        self._sockets.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        connection.settimeout(5)
        connection.connect((address.hostname, address.port))
        return connection

    async def verify(self) -> str:
        """See that what was sent to them lies unread in their sockets."""
        await asyncio.sleep(self.step.seconds or SECONDS)
        unread = [_unread(connection) for connection in self._sockets]
        if not unread or min(unread) == 0:
            raise MissedError(f"nothing was sent to a client that reads nothing: {unread} bytes lie unread")
        return f"{' and '.join(map(str, unread))} bytes lie unread in the clients' sockets"

    async def heal(self) -> str:
        """Close their connections."""
        for connection in self._sockets:
            connection.close()
        return f"{len(self._sockets)} connections closed"

    async def recovered(self, seconds: float) -> None:
        """See that nothing is missing, which it should never have been."""
        await self.stage.observer.until(self.stage.whole, seconds, "the gate open and nothing missing")


def _unread(connection: socket.socket) -> int:
    """How many bytes wait to be read."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.FIONREAD, b"\0\0\0\0"))
    return int(count)
