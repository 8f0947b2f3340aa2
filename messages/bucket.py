"""One key-value bucket: reads, compare-and-set, and a view of all of it that survives a reconnect."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from messages.errors import BusError, TakenError

log = logging.getLogger("troupe.bus")

WRONG_LAST_SEQUENCE: Final = (10_071, 10_164)
FORGOTTEN: Final = 15.0
"""Seconds after which the server drops the watch of who is gone; nats-py asks for 300, in which a crash loop piles up
hundreds. A watch is made anew after each reconnect, so it need not outlive one."""


class Bucket:
    """One key-value bucket: reads, compare-and-set, and views that survive a reconnect."""

    def __init__(self, kv: KeyValue, watchers: set[KeyValue.KeyWatcher]) -> None:
        self._kv = kv
        self._watchers = watchers

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """Return (value, revision), or None if the key is not there."""
        with _errors():
            try:
                entry = await self._kv.get(key)
            except nats.js.errors.KeyNotFoundError:
                return None
            return entry.value or b"", entry.revision or 0

    async def all(self) -> dict[str, bytes]:
        """Read everything that is in the bucket now."""
        found: asyncio.Future[dict[str, bytes]] = asyncio.get_running_loop().create_future()

        def whole(values: dict[str, bytes]) -> None:
            if not found.done():
                found.set_result(values)

        reading = asyncio.ensure_future(self.keep(">", whole, lambda key, value: None))
        try:
            async with asyncio.timeout(5):
                return await found
        except TimeoutError:
            raise BusError("the key-value bucket did not answer within 5 s") from None
        finally:
            reading.cancel()
            await asyncio.wait({reading}, timeout=1)

    async def put(self, key: str, value: bytes) -> int:
        """Write, whatever was there; return the new revision."""
        with _errors():
            return await self._kv.put(key, value)

    async def create(self, key: str, value: bytes) -> int:
        """Write if the key is not there (or was deleted); raises TakenError if it is."""
        with _errors():
            return await self._kv.create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write if the revision is still the one expected; raises TakenError if not."""
        with _errors():
            return await self._kv.update(key, value, last=revision)

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete, if given a revision only where it is still that one (TakenError if not)."""
        with _errors():
            await self._kv.delete(key, last=revision)

    async def keep(
        self,
        keys: str,
        whole: Callable[[dict[str, bytes]], None],
        change: Callable[[str, bytes | None], None],
    ) -> None:
        """Tell the owner of what is in the bucket, for ever: `whole` with all of it, then `change` for each change.

        After a reconnect the watch is made anew and `whole` is called again: a watch that is left alone can deliver
        its next change many seconds late. A value of None is a deletion. Run it in a task group; it ends only by
        being cancelled.
        """
        while True:
            try:
                watcher = await self._kv.watch(keys, inactive_threshold=FORGOTTEN)
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
                log.warning("cannot watch %s: %s; trying again", keys, error or type(error).__name__)
                await asyncio.sleep(0.2)
                continue
            self._watchers.add(watcher)
            try:
                values: dict[str, bytes] | None = {}
                async for entry in watcher:
                    if entry is None:
                        if values is not None and await self._is_empty(watcher):
                            whole(values)
                            values = None
                        continue
                    gone = entry.operation is not None
                    if values is None:
                        change(entry.key, None if gone else entry.value or b"")
                        continue
                    if gone:
                        values.pop(entry.key, None)
                    else:
                        values[entry.key] = entry.value or b""
                    if not entry.delta:
                        whole(values)
                        values = None
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
                log.warning("the watch on %s is made anew: %s", keys, error or type(error).__name__)
                await asyncio.sleep(0.2)
            finally:
                self._watchers.discard(watcher)
                with contextlib.suppress(Exception):
                    if watcher._sub is not None:
                        await asyncio.shield(watcher._sub.unsubscribe())

    async def _is_empty(self, watcher: KeyValue.KeyWatcher) -> bool:
        """Ask the server whether it has nothing for a watch of which nothing has come.

        nats-py asks too, but takes "all has been sent" for "there is nothing" when the answer overtakes the entries.
        """
        assert watcher._sub is not None
        info = await watcher._sub.consumer_info()
        return not info.num_pending and not (info.delivered and info.delivered.consumer_seq)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except nats.js.errors.APIError as error:
        if isinstance(error, nats.js.errors.KeyWrongLastSequenceError) or error.err_code in WRONG_LAST_SEQUENCE:
            raise TakenError("somebody else has changed the key") from None
        raise BusError(f"the key-value bucket refused: {error.description}") from None
    except (nats.errors.Error, TimeoutError) as error:
        raise BusError(f"the key-value bucket did not answer: {error or type(error).__name__}") from None


def stop_now(watcher: KeyValue.KeyWatcher) -> None:
    """End a watcher's iteration without waiting for the server; its owner unsubscribes."""
    while True:
        try:
            watcher._updates.put_nowait(KeyValue.KeyWatcher.STOP_ITER)
            return
        except asyncio.QueueFull:
            watcher._updates.get_nowait()
