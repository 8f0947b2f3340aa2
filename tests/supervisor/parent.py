"""A prefork parent that imports nothing: the same protocol and real forks, ready at once, failing on request.

An actor's first argument says what it does: `sleep`, or `exit N`. A slot named `refused` is not forked, and a slot
named `fatal` kills the parent instead. With `broken` as device the parent ends before it listens.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from messages import codec, procfs
from messages.prefork import Exited, Failed, FromParent, Heard, Ready, Spawn, Spawned, ToParent


def fork(asked: Spawn) -> int:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)
        return pid
    os.setsid()
    os.close(tell)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(asked.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.write(1, f"{asked.slot} {asked.env}\n".encode())
    if asked.argv[0] == "exit":
        os._exit(int(asked.argv[1]))
    time.sleep(60)
    os._exit(0)


def main() -> None:
    if sys.argv[4] == "broken":
        sys.exit("No module named 'sglang'")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[2])
    listener.listen()
    children: dict[int, Spawn] = {}
    wake, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(told)
    while True:
        connection, _ = listener.accept()
        with contextlib.suppress(ConnectionError):
            serve(connection, wake, children)
        connection.close()


def serve(connection: socket.socket, wake: int, children: dict[int, Spawn]) -> None:
    """Serve one supervisor until it hangs up."""

    def say(said: FromParent) -> None:
        connection.sendall(codec.to_json(said) + b"\n")

    say(Ready(pid=os.getpid(), import_seconds=0.0))
    while True:
        readable, _, _ = select.select([connection.fileno(), wake], [], [])
        if wake in readable:
            os.read(wake, 100)
            for pid in list(children):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    gone = children.pop(pid)
                    say(Exited(slot=gone.slot, generation=gone.generation, pid=pid, status=7))
        if connection.fileno() in readable:
            data = connection.recv(65_536)
            if not data:
                return
            for line in data.splitlines():
                asked = codec.json_decoder(ToParent).decode(line)
                if isinstance(asked, Heard):
                    continue
                if asked.slot == "fatal":
                    os.kill(os.getpid(), signal.SIGKILL)
                if asked.slot == "refused":
                    say(Failed(slot=asked.slot, generation=asked.generation, reason="CUDA is initialised"))
                    continue
                pid = fork(asked)
                children[pid] = asked
                found = procfs.process(pid)
                assert found is not None
                say(Spawned(slot=asked.slot, generation=asked.generation, pid=pid, start_time=found.start_time))


if __name__ == "__main__":
    Path(sys.argv[2]).unlink(missing_ok=True)
    main()
