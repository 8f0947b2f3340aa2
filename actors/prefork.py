"""`python -m actors prefork`: the parent that has imported everything and forks actors on command.

It listens on a Unix socket; a supervisor connects, is told of every exit that nobody has heard of, and sends
`messages.prefork.Spawn`. No threads, no event loop, nothing opened: forked children must find a clean process.
Losing the supervisor changes nothing; SIGTERM ends this process and leaves its actors running.
"""

import argparse
import gc
import logging
import os
import random
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from messages import codec, logs, procfs
from messages.prefork import Exited, Failed, FromParent, Heard, Ready, Spawn, Spawned, ToParent

log = logging.getLogger("troupe.prefork")

LINE_LIMIT: Final = 1 << 20
UNHEARD_LIMIT: Final = 4_096
SEND_SECONDS: Final = 2.0


def main(argv: list[str]) -> int:
    """Run until SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m actors prefork", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True, type=Path, help="Unix socket to listen on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the actors will run on")
    options = parser.parse_args(argv)
    logs.start("prefork")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    began = time.monotonic()
    from actors.engines.preimport import preimport

    try:
        preimport(options.device)
    except (ImportError, RuntimeError) as error:
        log.error("cannot import the engine: %s", error)
        return 1
    seconds = time.monotonic() - began
    log.info("imported in %.1f s", seconds)
    Parent(options.socket, options.device, seconds).run()


class Parent:
    """The loop: one listening socket, at most one supervisor, one pidfd an actor."""

    def __init__(self, path: Path, device: str, import_seconds: float) -> None:
        self._device = device
        self._import_seconds = import_seconds
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(path)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._supervisor: socket.socket | None = None
        self._received = b""
        self._unheard: dict[int, Exited] = {}

    def run(self) -> NoReturn:
        """Serve for ever."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(SEND_SECONDS)
        if self._supervisor is not None:
            self._hang_up()
        self._supervisor = connection
        self._selector.register(connection, selectors.EVENT_READ, self._receive)
        self._send(Ready(pid=os.getpid(), import_seconds=round(self._import_seconds, 3)))
        for exited in list(self._unheard.values()):
            self._send(exited)

    def _receive(self) -> None:
        assert self._supervisor is not None
        try:
            data = self._supervisor.recv(65_536)
        except OSError:
            data = b""
        if not data or len(self._received) > LINE_LIMIT:
            self._hang_up()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._obey(line)

    def _obey(self, line: bytes) -> None:
        try:
            command: ToParent = codec.json_decoder(ToParent).decode(line)
        except msgspec.DecodeError as error:
            log.error("not a command: %s", error)
            return
        if isinstance(command, Heard):
            self._unheard.pop(command.pid, None)
        else:
            self._send(self._spawn(command))

    def _spawn(self, command: Spawn) -> Spawned | Failed:
        from actors.engines.preimport import guard

        if (why := guard(self._device)) is not None:
            return Failed(slot=command.slot, generation=command.generation, reason=why)
        try:
            output = os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            pid = os.fork()
        except OSError as error:
            return Failed(slot=command.slot, generation=command.generation, reason=str(error))
        if pid == 0:
            self._become(command, output)
        os.close(output)
        started = procfs.process(pid)
        self._watch(command, pid)
        return Spawned(
            slot=command.slot,
            generation=command.generation,
            pid=pid,
            start_time=started.start_time if started is not None else 0,
        )

    def _become(self, command: Spawn, output: int) -> NoReturn:
        """Be the actor: a session of its own, its own output, none of the parent's descriptors."""
        status = 1
        try:
            os.setsid()
            self._selector.close()
            self._listener.close()
            if self._supervisor is not None:
                self._supervisor.close()
            for stream in (1, 2):
                os.dup2(output, stream)
            os.close(output)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.environ.update(command.env)
            random.seed()
            gc.enable()
            from actors.__main__ import main as act

            status = act(command.argv)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _watch(self, command: Spawn, pid: int) -> None:
        descriptor = os.pidfd_open(pid)

        def ended() -> None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            _, status = os.waitpid(pid, 0)
            exited = Exited(
                slot=command.slot, generation=command.generation, pid=pid, status=os.waitstatus_to_exitcode(status)
            )
            self._unheard[pid] = exited
            while len(self._unheard) > UNHEARD_LIMIT:
                del self._unheard[next(iter(self._unheard))]
            self._send(exited)

        self._selector.register(descriptor, selectors.EVENT_READ, ended)

    def _send(self, message: FromParent) -> None:
        if self._supervisor is None:
            return
        try:
            self._supervisor.sendall(codec.to_json(message) + b"\n")
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._supervisor is not None:
            self._selector.unregister(self._supervisor)
            self._supervisor.close()
        self._supervisor = None
        self._received = b""


def _listen(path: Path) -> socket.socket:
    """Listen on a Unix socket that only we may use, in place of what an earlier parent left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(4)
    return listener
