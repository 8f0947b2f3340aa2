"""What all tests share: a real nats-server of their own, and a check that nothing blocks the event loop."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
from blockbuster import blockbuster_ctx

from messages.bus import Bus
from messages.config import Nats
from tests.harness import Prefork

SERVER_SECONDS = 10.0


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Run async tests as the actors run: asyncio on uvloop."""
    return ("asyncio", {"use_uvloop": True})


UNCLOSED: Final[list[str]] = []


def pytest_warning_recorded(warning_message: warnings.WarningMessage, nodeid: str) -> None:
    """Remember who left something open."""
    if issubclass(warning_message.category, ResourceWarning):
        UNCLOSED.append(f"{nodeid}: {warning_message.message}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if something was left open, although each test passed."""
    if UNCLOSED and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left open."""
    for left in UNCLOSED:
        terminalreporter.write_line(f"LEFT OPEN {left}", red=True)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """Fail a test in which code of ours makes a blocking call inside an event loop."""
    with blockbuster_ctx(scanned_modules=["messages", "actors", "supervisor"]):
        yield


class NatsServer:
    """A real nats-server on a free loopback port, with JetStream in a folder of its own."""

    def __init__(self, folder: Path, *options: str, jetstream: bool = True) -> None:
        self._folder = folder
        self._options = options
        self._jetstream = jetstream
        self.port = -1
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, on the port it had before if it had one, and wait until it says that it is ready."""
        binary = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        assert binary, "nats-server is missing; `make setup` installs it"
        command = [binary, "-a", "127.0.0.1", "-p", str(self.port), *self._options]
        if self._jetstream:
            command += ["-js", "-sd", str(self._folder)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"Listening for client connections on 127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if "Server is ready" in line:
                return
        raise AssertionError("nats-server did not start:\n" + "".join(said))

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(SERVER_SECONDS)
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.process = None


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for this test alone."""
    server = NatsServer(tmp_path / "jetstream")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection to this test's server."""
    connection = await Bus.connect(Nats(url=nats_server.url), name="test", wait=5)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefork]:
    """A prefork parent that has imported SGLang."""
    made = Prefork(tmp_path_factory.mktemp("prefork"))
    yield made
    made.stop()


async def eventually(check: "object", seconds: float = 5.0) -> None:
    """Wait until `check()` is true, failing after so many seconds; for states that nobody announces."""
    assert callable(check)
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.005)
