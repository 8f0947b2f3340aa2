"""An engine's KV event sockets under a test's control: either wire form, with batches that never reach subscribers."""

import asyncio
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import zmq

from messages.lifecycle import KvSource

Form = Literal["0.5.17", "0.5.23"]
END = (-1).to_bytes(8, "big", signed=True)


def stored(number: int, form: Form = "0.5.23") -> Any:
    """One block of two tokens, as that version of SGLang writes it."""
    if form == "0.5.17":
        return ["BlockStored", [number], number - 1, [2 * number, 2 * number + 1], 2, None, "GPU"]
    return {
        "type": "BlockStored",
        "block_hashes": [number],
        "parent_block_hash": number - 1,
        "token_ids": [2 * number, 2 * number + 1],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
    }


class FakeEngine:
    """Publishes numbered batches; `keep` is how many it says again, `replays` how often it was asked to."""

    def __init__(self, where: str, folder: Path, *, form: Form = "0.5.23", keep: int = 10_000) -> None:
        self._form = form
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._events, events = self._bind(zmq.PUB, where, folder / "events")
        self._replay, replay = self._bind(zmq.ROUTER, where, folder / "replay")
        self.source = KvSource(endpoint=events, replay=replay)
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=keep)
        self.published = 0
        self.replays = 0

    def _bind(self, kind: int, where: str, path: Path) -> tuple[zmq.Socket[bytes], str]:
        bound = self._context.socket(kind)
        bound.set(zmq.LINGER, 0)
        bound.set(zmq.IPV6, int("[" in where))
        bound.bind(f"ipc://{path}" if where == "ipc" else f"{where}:0")
        return bound, bound.get_string(zmq.LAST_ENDPOINT)

    async def __aenter__(self) -> Self:
        """Begin to answer who asks."""
        asyncio.get_running_loop().add_reader(self._replay.fileno(), self._answer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        asyncio.get_running_loop().remove_reader(self._replay.fileno())
        self._context.destroy(linger=0)

    def publish(self, count: int = 1, *, reaches: bool = True) -> None:
        """Publish batches of one block each, which subscribers get or not."""
        for _ in range(count):
            batch: list[Any] = [float(self.published), [stored(self.published, self._form)]]
            payload = msgspec.msgpack.encode(batch if self._form == "0.5.17" else [*batch, 0])
            self._kept.append((self.published, payload))
            if reaches:
                self._events.send_multipart((b"", self.published.to_bytes(8, "big"), payload))
            self.published += 1

    def publish_frames(self, *frames: bytes) -> None:
        """Publish something else."""
        self._events.send_multipart(frames)

    def _answer(self) -> None:
        topic = [] if self._form == "0.5.17" else [b""]
        while not self._replay.closed and self._replay.poll(0):
            asker, _, start = self._replay.recv_multipart(zmq.NOBLOCK)
            self.replays += 1
            for number, payload in self._kept:
                if number >= int.from_bytes(start, "big"):
                    self._replay.send_multipart([asker, b"", *topic, number.to_bytes(8, "big"), payload], zmq.NOBLOCK)
            self._replay.send_multipart([asker, b"", *topic, END, b""], zmq.NOBLOCK)
