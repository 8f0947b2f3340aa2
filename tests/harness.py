"""Real actor processes without a supervisor, and a stand-in for the processor they answer to."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.frames import Ack, Finish, Frame, Hello, Receipt
from messages.ids import parse_slot
from messages.lifecycle import ExitNote, Registration, State
from messages.subjects import Subjects
from messages.work import Accept, Job

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 10.0


class Cast:
    """Actor processes of one configuration, started by hand and ended with the test."""

    def __init__(self, folder: Path, url: str, configuration: dict[str, Any]) -> None:
        self.folder = folder
        self.url = url
        self.config = folder / "cluster.yaml"
        self.config.write_bytes(msgspec.yaml.encode(configuration))
        self.subjects = Subjects(configuration.get("cluster", "troupe"))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, slot: str, generation: int = 1, *options: str) -> subprocess.Popen[bytes]:
        """Start one slot's process; its output goes to `<folder>/state/slots/<slot>/log`."""
        home = self.folder / "state" / "slots" / slot
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "actors", parse_slot(slot).role, "--config", str(self.config), "--slot", slot]
        command += [
            "--generation",
            str(generation),
            "--nats",
            self.url,
            "--state",
            str(self.folder / "state"),
            *options,
        ]
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self.processes[slot] = process
        return process

    def log(self, slot: str) -> str:
        """What the slot's process has written."""
        return (self.folder / "state" / "slots" / slot / "log").read_text()

    def exit_note(self, slot: str) -> ExitNote:
        """Why the slot's last life ended, by its own word."""
        return codec.from_json((self.folder / "state" / "slots" / slot / "exit.json").read_bytes(), ExitNote)

    async def until_ready(self, bus: Bus, *slots: str, generation: int = 1) -> dict[str, Registration]:
        """Wait until all of them are registered as ready."""
        registry = await bus.bucket(self.subjects.registry_bucket)
        found: dict[str, Registration] = {}
        done = asyncio.Event()

        def see(key: str, value: bytes | None) -> None:
            if key.startswith("gen.") or value is None:
                return
            registration = codec.from_json(value, Registration)
            if registration.state is State.READY and registration.generation >= generation:
                found[registration.slot] = registration
            if all(slot in found for slot in slots):
                done.set()

        def see_all(values: dict[str, bytes]) -> None:
            for key, value in values.items():
                see(key, value)

        watching = asyncio.ensure_future(registry.keep(">", see_all, see))
        try:
            async with asyncio.timeout(READY_SECONDS):
                await done.wait()
        except TimeoutError:
            logs = "\n".join(self.log(slot) for slot in slots if slot not in found)
            raise AssertionError(f"not ready: {[slot for slot in slots if slot not in found]}\n{logs}") from None
        finally:
            watching.cancel()
        return found

    def stop(self) -> None:
        """Kill whatever still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


class Desk:
    """A processor's side of the frames: sends work, receives, acknowledges (unless told not to), keeps what came."""

    def __init__(self, bus: Bus, subjects: Subjects, name: str = "test-processor-0-g1") -> None:
        self.bus = bus
        self.subjects = subjects
        self.name = name
        self.acknowledge = True
        self.frames: list[Frame] = []
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.finishes: dict[str, list[Finish]] = defaultdict(list)
        self.prefilled: dict[str, Finish] = {}
        self.last: dict[str, int] = defaultdict(int)
        self._changed = asyncio.Condition()

    async def open(self) -> None:
        """Listen for frames."""
        await self.bus.subscribe(self.subjects.out(self.name), self._on_frame)

    async def _on_frame(self, msg: Msg) -> None:
        frame = codec.from_msgpack(msg.data, Frame)
        self.frames.append(frame)
        if frame.seq == self.last[frame.sender] + 1:
            self.last[frame.sender] = frame.seq
        for item in frame.items:
            if item.finish is not None and item.finish.reason == "prefilled":
                self.prefilled[f"{item.request}:{item.attempt}"] = item.finish
                continue
            tokens = self.tokens[f"{item.request}:{item.attempt}"]
            if item.position == len(tokens):
                tokens += codec.unpack_tokens(item.tokens)
                if item.finish is not None:
                    self.finishes[f"{item.request}:{item.attempt}"].append(item.finish)
        if self.acknowledge:
            await self.say(frame.sender, Ack(self.name, self.last[frame.sender]))
        async with self._changed:
            self._changed.notify_all()

    async def say(self, sender: str, receipt: Receipt) -> None:
        """Acknowledge, or ask again."""
        await self.bus.publish(self.subjects.ack(sender), codec.to_msgpack(receipt))

    async def hello(self, sender: str, after: int) -> None:
        """Ask for everything after a number again."""
        await self.say(sender, Hello(self.name, after))

    async def ask(self, slot: str, job: Job) -> Accept:
        """Send work to one slot; raises ServiceError as the bus does."""
        address = parse_slot(slot)
        subject = self.subjects.work(address.alias, address.role, slot)
        answer = await self.bus.request(subject, codec.to_msgpack(job), timeout=2)
        return codec.from_msgpack(answer.data, Accept)

    async def finished(self, request: str, attempt: int = 0, seconds: float = 10.0) -> Finish:
        """Wait for the finish of an attempt."""
        key = f"{request}:{attempt}"
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: self.finishes[key])
        assert len(self.finishes[key]) == 1
        return self.finishes[key][0]

    async def some(self, request: str, count: int, attempt: int = 0, seconds: float = 10.0) -> list[int]:
        """Wait until so many tokens have come."""
        key = f"{request}:{attempt}"
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.tokens[key]) >= count)
        return self.tokens[key]
