"""A ZMQ socket on our event loop: read what is there, or wait for more; no thread, no task a message."""

import asyncio
import contextlib
from typing import Final

import zmq

HWM: Final = 10_000
"""Messages that a socket keeps for us; what comes beyond is dropped, noticed by its number and asked for again."""
RECONNECT_MAX: Final = 2_000
"""Milliseconds between two attempts to connect, once the first have failed."""


class ZmqSocket:
    """One connected socket. ZMQ tells of new messages on a descriptor, once, until its events have been looked at."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str) -> None:
        self._socket = context.socket(kind)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.IPV6, 1)
        self._socket.set(zmq.RCVHWM, HWM)
        self._socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX)
        if kind == zmq.SUB:
            self._socket.set(zmq.SUBSCRIBE, b"")
        self._news = asyncio.Event()
        self._socket.connect(endpoint)
        self._descriptor = self._socket.fileno()
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_news)

    def _on_news(self) -> None:
        self._readable()
        self._news.set()

    def wake(self) -> None:
        """Have `wait` return, for a reason of the owner's."""
        self._news.set()

    def receive(self) -> list[bytes] | None:
        """Take the next message, or None if there is none now."""
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    async def wait(self) -> None:
        """Wait until there may be something to receive, or until woken."""
        if not self._readable():
            await self._news.wait()
        self._news.clear()

    def _readable(self) -> bool:
        """Whether there is something to receive; looking quiets the descriptor until there is more."""
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def send(self, frames: list[bytes]) -> None:
        """Send, or drop where the other side is not there; who waits for an answer has a deadline."""
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK)

    def close(self) -> None:
        """Close it; what it has not given us is gone."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._socket.close(0)
