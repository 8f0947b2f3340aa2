"""The stack without its containers: the real nats-server on compose/nats.conf, and every command that compose.yaml has.

What a container adds (its own file system, network and limits) is not here; compose/README.md says so.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client as Nc

from messages.bus import Bus, BusError
from messages.config import Nats
from tests.compose.stack import COMPOSE, CONFIG, ROOT, Service, actors, services
from tests.conftest import NatsServer

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]

PASSWORD = "7: not # a number"
"""What nats-server would take for something else than a text, were it not for the quotation marks."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    """A server on compose/nats.conf, told its password as compose does, on a loopback port and in a folder here."""
    monkeypatch.setenv("NATS_PASSWORD", interpolated(services()["nats"]["environment"]["NATS_PASSWORD"]))
    text = (COMPOSE / "nats.conf").read_text()
    assert text.count('"/data"') == 1
    (tmp_path / "nats.conf").write_text(text.replace('"/data"', f'"{tmp_path}"'))
    made = NatsServer(tmp_path, "-c", str(tmp_path / "nats.conf"), jetstream=False)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def interpolated(text: str) -> str:
    """Put in the password as compose does."""
    return re.sub(r"\$\{NATS_PASSWORD[^}]*\}", PASSWORD, text)


def nats(server: NatsServer, **more: str) -> Nats:
    return Nats(url=server.url, **({"user": "troupe", "password": PASSWORD} | more))  # type: ignore[arg-type]


def test_nats_server_itself_finds_the_configuration_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_PASSWORD", '"x"')
    command = [f"{Path(sys.executable).parent}/nats-server", "-t", "-c", str(COMPOSE / "nats.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("NATS_PASSWORD")
    done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    assert done.returncode != 0, "no password, no server"


async def test_whoever_has_not_the_password_gets_nothing(server: NatsServer) -> None:
    for wrong in ({"password": "7"}, {"password": ""}, {"user": "admin"}):
        with pytest.raises(BusError, match="Authorization Violation"):
            await Bus.connect(nats(server, **wrong), name="test", wait=1)
    with pytest.raises(BusError, match="Authorization Violation"):
        await Bus.connect(Nats(url=server.url), name="test", wait=1)


async def test_whoever_has_it_gets_no_further_than_the_cluster(server: NatsServer) -> None:
    bus = await Bus.connect(nats(server), name="test", wait=5)
    await bus.require_jetstream()
    assert bus.max_payload == 8 << 20
    bucket = await bus.bucket("troupe_registry")
    await bucket.put("gen.demo-decode-0", b"1")
    assert await bucket.all() == {"gen.demo-decode-0": b"1"}
    await bus.close()

    refusals: list[str] = []
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        refused.put_nowait(str(error))

    connection = Nc()
    await connection.connect(server.url, user="troupe", password=PASSWORD, error_cb=on_error)
    foreign = [
        "other.v1.submit.demo.chat",
        "$SYS.REQ.SERVER.PING",
        "$JS.API.STREAM.DELETE.KV_troupe_registry",
        "$KV.x.y",
    ]
    for subject in foreign:
        await connection.publish(subject, b"")
    await connection.subscribe("other.>")
    await connection.subscribe(">")
    async with asyncio.timeout(5):
        for subject in [*foreign, "other.>", ">"]:
            while not any(f'"{subject.lower()}"' in said for said in refusals):
                refusals.append(await refused.get())
    await connection.close()


def test_it_listens_for_clients_alone(server: NatsServer) -> None:
    """A monitoring port would tell anybody who can reach it what runs here."""
    assert server.process is not None
    inodes = {os.readlink(fd) for fd in Path(f"/proc/{server.process.pid}/fd").iterdir() if fd.is_symlink()}
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in inodes
    ]
    assert [int(address.rpartition(":")[2], 16) for address in listening] == [server.port]


class Stack:
    """The processes of compose.yaml, each started by its own command, with what a container would give it."""

    def __init__(self, folder: Path, server: NatsServer, engine: str) -> None:
        self.folder = folder
        self.config = folder / "containers.yaml"
        (folder / "nats_password").write_text(PASSWORD)
        text = (ROOT / "configs" / "containers.yaml").read_text()
        for old, new in (
            ("nats://nats:4222", server.url),
            ("/run/secrets/nats_password", str(folder / "nats_password")),
            ("host: 0.0.0.0, port: 8000", "host: 127.0.0.1, port: 0"),
            ("host: 0.0.0.0, port: 9400", "host: 127.0.0.1, port: 0"),
            ("host: 0.0.0.0, port: 7070", "host: 127.0.0.1, port: 0"),
            ("../models", str(ROOT / "models")),
            ("engine: sglang", f"engine: {engine}"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        self.config.write_text(text)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, given: list[str]) -> list[str]:
        """A container's command, on this machine's Python and paths."""
        ours = {"python": [sys.executable], "troupe": [sys.executable, "-m", "supervisor.cli"]}
        state = str(self.folder / "supervisor" if given[0] == "troupe" else self.folder / "actors")
        rest = [{CONFIG: str(self.config), "/state": state}.get(part, part) for part in given[1:]]
        return ours[given[0]] + rest

    def environment(self, service: Service) -> dict[str, str]:
        """A container's environment; the address it would have on its network is this machine's loopback."""
        given: dict[str, str] = service.get("environment", {})
        return os.environ | given | {"TROUPE_ADVERTISE": "127.0.0.1"}

    def start(self, name: str, service: Service) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self.command(service["command"]),
                cwd=ROOT,
                env=self.environment(service),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_all(self, parts: dict[str, Service]) -> None:
        """Start everything but NATS, in the order of the file."""
        for name, service in parts.items():
            if name != "nats":
                self.start(name, service)

    def healthy(self, service: Service) -> subprocess.CompletedProcess[str]:
        """Call a container's health check once."""
        command = self.command(service["healthcheck"]["test"][1:])
        environ = self.environment(service)
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20)

    def troupe(self, *arguments: str, seconds: float = 45.0) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec supervisor troupe …` would do."""
        command = self.command(["troupe", *arguments, "--state", "/state"])
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))

    def stop(self, seconds: float = 15.0) -> dict[str, int]:
        """SIGTERM to all at once, as `docker compose stop` does; return the exit codes."""
        for process in self.processes.values():
            process.terminate()
        codes = {}
        deadline = time.monotonic() + seconds
        for name, process in self.processes.items():
            try:
                codes[name] = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                codes[name] = process.wait()
        return codes


@pytest.mark.timeout(120)
def test_the_commands_of_compose_make_a_cluster(server: NatsServer, tmp_path: Path) -> None:
    stack, parts = Stack(tmp_path, server, "simulated"), services()
    assert stack.healthy(parts["nats"]).returncode == 0
    assert stack.healthy(parts["processor-0"]).returncode != 0, "it has not been started"
    try:
        stack.start_all(parts)
        done = stack.troupe("status", "--wait-ready", "40")
        assert done.returncode == 0, done.stdout + done.stderr + stack.logs()
        assert done.stdout.count("external, ") == len(actors())
        done = stack.troupe("submit", "Hello!", "--max-tokens", "3", "--no-stream")
        assert done.returncode == 0, done.stderr
        for name, service in parts.items():
            said = stack.healthy(service)
            assert said.returncode == 0, (name, said.stderr)
    finally:
        codes = stack.stop()
    assert codes == {name: 0 for name in parts if name != "nats"}, stack.logs()


@pytest.mark.sglang
@pytest.mark.long
@pytest.mark.timeout(400)
def test_so_they_do_with_the_real_engines(server: NatsServer, tmp_path: Path) -> None:
    """Three engines that nobody forked from a warm parent, KV blocks from one to the others; one of them killed."""
    stack, parts = Stack(tmp_path, server, "sglang"), services()
    try:
        stack.start_all(parts)
        done = stack.troupe("status", "--wait-ready", "240", seconds=250)
        assert done.returncode == 0, done.stdout + done.stderr + stack.logs()
        for killed in (None, "decode-0"):
            if killed is not None:
                stack.processes[killed].kill()
                stack.processes[killed].wait()
            done = stack.troupe("submit", "Count from 1 to 20.", "--temperature", "0", "--no-stream")
            assert done.stdout.strip().startswith("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13"), (
                done.stdout + done.stderr
            )
    finally:
        codes = stack.stop(30)
    assert codes == {name: 0 for name in parts if name != "nats"} | {"decode-0": -signal.SIGKILL}, stack.logs()
