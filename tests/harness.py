"""Real actor processes without a supervisor, and a stand-in for the processor they answer to."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from nats.aio.msg import Msg

from messages import codec
from messages.bus import Bus
from messages.frames import Ack, Finish, Frame, Hello, Receipt
from messages.ids import parse_slot
from messages.lifecycle import ExitNote, Registration, State
from messages.prefork import Exited, FromParent, Heard, Ready, Spawn, Spawned, ToParent
from messages.subjects import Subjects
from messages.work import Accept, Encode, Job

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 30.0
PREFORK_SECONDS = 90.0

T = TypeVar("T")


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

    def home(self, slot: str) -> Path:
        """The slot's own folder."""
        home = self.folder / "state" / "slots" / slot
        home.mkdir(parents=True, exist_ok=True)
        return home

    def argv(self, slot: str, generation: int) -> list[str]:
        """The arguments of one life of a slot."""
        told = {"config": self.config, "slot": slot, "generation": generation, "nats": self.url}
        options = [part for name, value in told.items() for part in (f"--{name}", str(value))]
        return [parse_slot(slot).role, *options, "--state", str(self.folder / "state")]

    def log(self, slot: str) -> str:
        """What the slot's process has written."""
        return (self.folder / "state" / "slots" / slot / "log").read_text()

    def exit_note(self, slot: str) -> ExitNote:
        """Why the slot's last life ended, by its own word."""
        return codec.from_json((self.folder / "state" / "slots" / slot / "exit.json").read_bytes(), ExitNote)

    async def until_ready(
        self, bus: Bus, *slots: str, generation: int = 1, seconds: float = READY_SECONDS
    ) -> dict[str, Registration]:
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
            async with asyncio.timeout(seconds):
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


class Prefork:
    """A prefork parent, as the supervisor would use it."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "prefork.log"
        path = folder / "prefork.socket"
        command = [sys.executable, "-m", "actors", "prefork", "--socket", str(path)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        self._socket = self._connect(path)
        self._lines = self._socket.makefile("rwb")
        self._read(Ready)

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + PREFORK_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                time.sleep(0.05)
            else:
                connection.settimeout(PREFORK_SECONDS)
                return connection
        raise AssertionError(f"the prefork parent did not come up:\n{self._log.read_text()}")

    def _read(self, kind: type[T]) -> T:
        """Read lines until one of this kind comes."""
        while line := self._lines.readline():
            message: FromParent = codec.json_decoder(FromParent).decode(line)
            if isinstance(message, Exited):
                self.say(Heard(pid=message.pid))
            if isinstance(message, kind):
                return message
        raise AssertionError("the prefork parent hung up")

    def say(self, message: ToParent) -> None:
        """Send one command."""
        self._lines.write(codec.to_json(message) + b"\n")
        self._lines.flush()

    def spawn(self, cast: "Cast", slot: str, generation: int = 1) -> int:
        """Fork one slot's actor; returns its pid."""
        home = cast.home(slot)
        command = Spawn(
            slot=slot, generation=generation, argv=cast.argv(slot, generation), env={}, log=str(home / "log")
        )
        self.say(command)
        return self._read(Spawned).pid

    def until_exit(self) -> Exited:
        """Wait for the next actor to end."""
        return self._read(Exited)

    def stop(self) -> None:
        """End it; its actors live on."""
        self._lines.close()
        self._socket.close()
        self.process.terminate()
        self.process.wait(10)


class Desk:
    """A processor's side of the frames: sends work, receives, acknowledges (unless told not to), keeps what came."""

    def __init__(self, bus: Bus, subjects: Subjects, name: str = "test-processor-0-g1") -> None:
        self.bus = bus
        self.subjects = subjects
        self.name = name
        self.acknowledge = True
        self.ranks = 2
        self.frames: list[Frame] = []
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.logprobs: dict[str, list[codec.Ranked]] = defaultdict(list)
        self.prompt_logprobs: dict[str, list[codec.Ranked]] = defaultdict(list)
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
            if item.logprobs and not item.tokens:
                count = len(item.logprobs) // (4 + 8 * self.ranks)
                self.prompt_logprobs[f"{item.request}:{item.attempt}"] += codec.unpack_logprobs(item.logprobs, count)
            if item.finish is not None and item.finish.reason == "prefilled":
                self.prefilled[f"{item.request}:{item.attempt}"] = item.finish
                continue
            tokens = self.tokens[f"{item.request}:{item.attempt}"]
            if item.position == len(tokens):
                ids = codec.unpack_tokens(item.tokens)
                tokens += ids
                if item.logprobs is not None and ids:
                    self.logprobs[f"{item.request}:{item.attempt}"] += codec.unpack_logprobs(item.logprobs, len(ids))
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

    async def ask(self, slot: str, job: Job | Encode) -> Accept:
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

    async def finished_prefill(self, request: str, attempt: int = 0, seconds: float = 10.0) -> Finish:
        """Wait until prefill has said that its part is done, with which comes what it has to say of the prompt."""
        key = f"{request}:{attempt}"
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: key in self.prefilled)
        return self.prefilled[key]

    async def some(self, request: str, count: int, attempt: int = 0, seconds: float = 10.0) -> list[int]:
        """Wait until so many tokens have come."""
        key = f"{request}:{attempt}"
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.tokens[key]) >= count)
        return self.tokens[key]
