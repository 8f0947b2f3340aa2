"""Publishes the simulated engine's KV events as SGLang does: PUB for what happens, ROUTER for what was missed."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, Final

import zmq

from actors.kv_wire import END, encode
from messages.lifecycle import KvSource

log = logging.getLogger("troupe.simulated")

KEPT: Final = 10_000
"""Batches kept for those who have missed some: SGLang's `buffer_steps`."""


class KvPublisher:
    """One DP rank's events; what is added in one turn of the loop goes out as one batch."""

    def __init__(self, source: KvSource) -> None:
        self._rank = source.dp_rank
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._events = self._bound(zmq.PUB, source.endpoint)
        self._replay = self._bound(zmq.ROUTER, source.replay)
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=KEPT)
        self._seq = 0
        self._pending: list[Any] = []

    def _bound(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        bound = self._context.socket(kind)
        bound.set(zmq.LINGER, 0)
        bound.set(zmq.IPV6, 1)
        bound.set(zmq.SNDHWM, 2 * KEPT)
        bound.bind(endpoint)
        return bound

    def open(self) -> None:
        """Answer those who ask for what they have missed."""
        asyncio.get_running_loop().add_reader(self._replay.fileno(), self._answer)
        self._answer()

    def add(self, event: Any) -> None:
        """Add an event to the batch of this turn."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._send)
        self._pending.append(event)

    def _send(self) -> None:
        events, self._pending = self._pending, []
        payload = encode(time.time(), events, self._rank)
        seq = self._seq.to_bytes(8, "big")
        self._seq += 1
        self._kept.append((seq, payload))
        if not self._events.closed:
            self._events.send_multipart((b"", seq, payload), zmq.NOBLOCK)

    def _answer(self) -> None:
        """Serve every request there is; the socket's descriptor tells of the first only."""
        while not self._replay.closed and self._replay.poll(0):
            request = self._replay.recv_multipart(zmq.NOBLOCK)
            if len(request) != 3 or len(request[2]) != 8:
                log.warning("not a request for events: %s", request)
                continue
            asker, _, start = request
            with contextlib.suppress(zmq.Again):
                for seq, payload in self._kept:
                    if seq >= start:
                        self._replay.send_multipart((asker, b"", b"", seq, payload), zmq.NOBLOCK)
                self._replay.send_multipart((asker, b"", b"", END, b""), zmq.NOBLOCK)

    def close(self) -> None:
        """Close both sockets."""
        with contextlib.suppress(RuntimeError, ValueError):
            asyncio.get_running_loop().remove_reader(self._replay.fileno())
        self._context.destroy(linger=0)
