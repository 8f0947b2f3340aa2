"""A slot's entry in the registry: compare-and-set throughout, so that an older life never overwrites a newer one."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from actors.ending import Ending
from messages import codec
from messages.bus import Bucket, BusError, TakenError
from messages.ids import Role, short
from messages.lifecycle import Exit, Registration
from messages.subjects import Subjects

log = logging.getLogger("troupe.actor")

RETRY_SECONDS: Final = 0.5
TRIES_AT_ONCE: Final = 3


class Registrar:
    """Registers one life of a slot; `describe` gives what is registered, as it is at that moment.

    With `restores` an entry that was taken away is written again: whoever cannot see our process takes us for dead when
    we have been silent for long. Without, it is the end of us: then only our supervisor does that, who knows.
    """

    def __init__(
        self,
        registry: Bucket,
        subjects: Subjects,
        role: Role,
        slot: str,
        generation: int,
        describe: Callable[[], Registration],
        *,
        restores: bool = False,
    ) -> None:
        self._registry = registry
        self._key = subjects.registration_key(role, slot)
        self._generation_key = subjects.generation_key(slot)
        self._slot = slot
        self._generation = generation
        self._describe = describe
        self._restores = restores
        self._revision = 0
        self._writing = asyncio.Lock()

    async def register(self) -> None:
        """Register. Raises Ending if a newer life is registered or about to start, or the registry does not answer."""
        for left in reversed(range(TRIES_AT_ONCE)):
            try:
                async with self._writing:
                    await self._write()
            except TakenError:
                if not left:
                    raise Ending(Exit.REGISTER, f"others keep registering {self._slot}") from None
            except (BusError, msgspec.DecodeError) as error:
                raise Ending(Exit.REGISTER, f"cannot register {self._slot}: {error}") from None
            else:
                return

    async def restore(self) -> None:
        """Register again after a time without NATS, trying until the registry answers. Raises Ending if fenced off."""
        while True:
            try:
                async with self._writing:
                    await self._write()
            except (BusError, TakenError) as error:
                log.warning("cannot register again yet: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _write(self) -> None:
        newest = await self._registry.get(self._generation_key)
        if newest is not None and int(newest[0]) > self._generation:
            raise Ending(Exit.REGISTER, f"{self._slot} is at generation {int(newest[0])} by now; this life is over")
        there = await self._registry.get(self._key)
        value = codec.to_json(self._describe())
        if there is None:
            self._revision = await self._registry.create(self._key, value)
            return
        other = codec.from_json(there[0], Registration)
        if other.generation > self._generation:
            raise Ending(Exit.REGISTER, f"{short(self._slot, other.generation)} is registered; this life is over")
        self._revision = await self._registry.update(self._key, value, there[1])

    async def update(self) -> None:
        """Write what has changed. Raises Ending if the entry was taken away; without NATS, `restore` will do it."""
        try:
            async with self._writing:
                value = codec.to_json(self._describe())
                self._revision = await self._registry.update(self._key, value, self._revision)
        except TakenError:
            if not self._restores:
                raise Ending(Exit.REGISTER, f"the registration of {self._slot} was taken away") from None
            await self.restore()
        except BusError as error:
            log.warning("the registration is not up to date: %s", error)

    async def leave(self) -> None:
        """Take the entry away, if it is still ours."""
        if self._revision:
            with contextlib.suppress(TakenError):
                await self._registry.delete(self._key, self._revision)

    async def watch(self) -> None:
        """Raise Ending as soon as a newer life of this slot is about to start; run it in the background."""
        newer = asyncio.Event()

        def see(value: bytes | None) -> None:
            if value is not None and int(value) > self._generation:
                newer.set()

        await self._until(newer, self._generation_key, see)
        raise Ending(Exit.REGISTER, "a newer life of this slot has begun")

    async def keep(self) -> None:
        """Write our entry again whenever it was taken away; run it in the background. Raises Ending if fenced off."""
        while True:
            gone = asyncio.Event()

            def see(value: bytes | None, gone: asyncio.Event = gone) -> None:
                if value is None:
                    gone.set()

            await self._until(gone, self._key, see)
            log.warning("our registration was taken away; registering again")
            await self.restore()

    async def _until(self, event: asyncio.Event, key: str, see: Callable[[bytes | None], None]) -> None:
        """Watch a key until an event is set; what comes of the watch failing is raised."""
        keeping = asyncio.ensure_future(
            self._registry.keep(key, lambda values: see(values.get(key)), lambda _, value: see(value))
        )
        told = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({keeping, told}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
        finally:
            keeping.cancel()
            told.cancel()
