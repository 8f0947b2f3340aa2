"""The observer of a drill: listens to events, heartbeats, frames, the registry and the gates, and keeps what it hears.

It stands beside the clients. In particular it listens to no subject that is answered, where a mere
listener would hide that nobody is there to answer.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Self

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from messages import codec
from messages.bus import Bus, BusError
from messages.frames import Frame
from messages.gate import Gate
from messages.ids import incarnation_of, parse_incarnation
from messages.lifecycle import Event, Heartbeat, Registration
from messages.subjects import Subjects, last_token
from supervisor.drills.history import Beats, GateSeen, Happened, Line, Mark, Memory, Moved, Registered, Worked
from supervisor.state import ClusterRecord

CONNECT_SECONDS: Final = 10.0
SAMPLE_SECONDS: Final = 0.25


class Waited(Exception):
    """Something that was waited for did not come; the text says what."""


class Observer:
    """Keeps in `lines` what it has heard; `wall` and `monotonic` are one moment by both clocks."""

    def __init__(self, record: ClusterRecord, gpus: int = 0) -> None:
        self._record = record
        self._subjects = Subjects(record.cluster)
        self._gpus = gpus
        self._beats: dict[tuple[str, int], Beats] = {}
        self._worked: dict[str, Worked] = {}
        self._ears: dict[str, Subscription] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._news = asyncio.Event()
        self.bus: Bus
        self.wall, self.monotonic = time.time(), time.monotonic()
        self.lines: list[Line] = []
        self.marks: dict[str, float] = {}
        self.registry: dict[str, Registration] = {}
        self.gates: dict[str, Gate] = {}
        self.heard: dict[str, Heartbeat] = {}
        self.heard_at: dict[str, float] = {}
        self.losses = 0
        self._streams: dict[str, set[str]] = {}
        self._attempts: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        """Connect and begin to listen. Raises BusError."""
        subjects = self._subjects
        self.bus = await Bus.connect(self._record.nats, name="drill-observer", wait=CONNECT_SECONDS)
        self.bus.on_lost(self._on_lost)
        registry = await self.bus.bucket(subjects.registry_bucket)
        gates = await self.bus.bucket(subjects.gate_bucket)
        await self.bus.subscribe(subjects.events, self._on_event)
        await self.bus.subscribe(subjects.heartbeats, self._on_heartbeat)
        self._tasks += [
            asyncio.create_task(registry.keep(">", self._on_registry, self._on_registration)),
            asyncio.create_task(gates.keep(">", self._on_gates, self._on_gate)),
        ]
        if self._gpus:
            self._tasks.append(asyncio.create_task(self._sample_memory()))
        await self.bus.flush()
        self.mark("observed", "the observer listens")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; what was counted becomes lines."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()
        self.lines += [*self._beats.values(), *self._worked.values()]
        self._beats, self._worked = {}, {}

    def mark(self, name: str, text: str = "", at: float | None = None) -> float:
        """Note something that the drill itself did; return when."""
        at = time.monotonic() if at is None else at
        self.marks[name] = at
        self._add(Mark(at=at, name=name, text=text))
        return at

    async def until(self, check: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `check()` holds for what has been heard. Raises Waited after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not check():
                    self._news.clear()
                    for task in self._tasks:
                        if task.done():
                            task.result()
                    await self._news.wait()
        except TimeoutError:
            raise Waited(f"not within {seconds:g} s: {what}") from None

    def events(self, topic: str, of: str, *whats: str, after: float = 0.0) -> list[Happened]:
        """Return what happened to one slot (or gate) after a moment; all of a topic's words unless some are given."""
        return [
            line
            for line in self.lines
            if isinstance(line, Happened)
            and (line.topic, line.of) == (topic, of)
            and line.at >= after
            and (not whats or line.what in whats)
        ]

    def generation(self, slot: str) -> int:
        """Return the generation in which a slot is registered, 0 if it is not."""
        registration = self.registry.get(slot)
        return registration.generation if registration is not None else 0

    def streams(self, slot: str) -> int:
        """How many streams an actor of this slot is in the middle of, by the frames that it has sent."""
        sender = incarnation_of(slot, self.generation(slot))
        return len(self._streams.get(sender, ()))

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        self._news.set()

    def _on_lost(self) -> None:
        self.losses += 1
        self.mark("bus_lost", "the observer's connection to NATS broke")

    async def _on_event(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            event = codec.from_json(msg.data, Event)
            fields = msgspec.structs.asdict(event) | {"at": event.at - self.wall + self.monotonic}
            self._add(Happened(**fields))

    async def _on_heartbeat(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            beat, now = codec.from_json(msg.data, Heartbeat), time.monotonic()
            self.heard[beat.slot], self.heard_at[beat.slot] = beat, now
            new = Beats(slot=beat.slot, generation=beat.generation, first=now, last=now)
            self._beats.setdefault((beat.slot, beat.generation), new).last = now
            self._news.set()

    async def _on_frame(self, msg: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError, ValueError):
            frame, now = codec.msgpack_decoder(Frame).decode(msg.data), time.monotonic()
            worked = self._worked.get(frame.sender)
            if worked is None:
                slot, generation = parse_incarnation(frame.sender)
                worked = Worked(slot=slot, generation=generation, first=now, last=now, frames=0)
                self._worked[frame.sender] = worked
            worked.last, worked.frames = now, worked.frames + 1
            streams = self._streams.setdefault(frame.sender, set())
            for item in frame.items:
                (streams.add if item.finish is None else streams.discard)(item.request)
                if item.attempt > self._attempts.get(item.request, 1):
                    self._attempts[item.request] = item.attempt
                    self._add(Moved(at=now, request=item.request, attempt=item.attempt, slot=worked.slot))
            self._news.set()

    def _on_registry(self, whole: dict[str, bytes]) -> None:
        found = [last_token(key) for key in whole if not key.startswith("gen.")]
        for slot in [slot for slot in self.registry if slot not in found]:
            self._forget(slot)
        for key, value in whole.items():
            self._on_registration(key, value)

    def _on_registration(self, key: str, value: bytes | None) -> None:
        if key.startswith("gen."):
            return
        if value is None:
            self._forget(last_token(key))
            return
        with contextlib.suppress(msgspec.DecodeError):
            new = codec.from_json(value, Registration)
            old = self.registry.get(new.slot)
            self.registry[new.slot] = new
            if old is None or (old.generation, old.state) != (new.generation, new.state):
                at = time.monotonic()
                self._add(Registered(at=at, slot=new.slot, generation=new.generation, state=new.state))
            if new.role == "processor":
                self._tasks.append(asyncio.create_task(self._listen_to(new.slot, new.generation)))

    def _forget(self, slot: str) -> None:
        self.registry.pop(slot, None)
        self._add(Registered(at=time.monotonic(), slot=slot))

    async def _listen_to(self, slot: str, generation: int) -> None:
        """Hear the frames that go to one processor."""
        name = incarnation_of(slot, generation)
        if name not in self._ears:
            with contextlib.suppress(BusError):
                self._ears[name] = await self.bus.subscribe(self._subjects.out(name), self._on_frame)

    def _on_gates(self, whole: dict[str, bytes]) -> None:
        for alias, value in whole.items():
            self._on_gate(alias, value)

    def _on_gate(self, alias: str, value: bytes | None) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            if value is None:
                return
            gate = codec.from_json(value, Gate)
            old = self.gates.get(alias)
            self.gates[alias] = gate
            if old is None or old.epoch != gate.epoch:
                since = gate.since - self.wall + self.monotonic
                at = time.monotonic()
                self._add(GateSeen(at=at, alias=alias, open=gate.open, epoch=gate.epoch, since=since))
            self._news.set()

    async def _sample_memory(self) -> None:
        """Ask the driver again and again how much memory is used: nobody tells it otherwise."""
        while True:
            process = await asyncio.create_subprocess_exec(
                "nvidia-smi",
                "--query-gpu=index,memory.used",
                "--format=csv,noheader,nounits",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            output, _ = await process.communicate()
            for line in output.decode().splitlines():
                index, _, used = line.partition(",")
                if index.strip().isdigit() and used.strip().isdigit():
                    self._add(Memory(at=time.monotonic(), gpu=int(index), used=int(used)))
            await asyncio.sleep(SAMPLE_SECONDS)
