"""The exit codes of `troupe`, what they mean, and the error that carries one."""

from enum import IntEnum
from typing import Final

DEFAULT_STATE: Final = ".troupe"


class Code(IntEnum):
    """What the exit codes of `troupe` mean; `troupe --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    NOT_RUNNING = 4
    NOT_READY = 5
    TAKEN = 6
    REFUSED = 7
    INTERRUPTED = 130


MEANINGS: Final = {
    Code.OK: "done",
    Code.FAILED: "it did not work; the last line says why",
    Code.USAGE: "the command line itself is wrong",
    Code.CONFIG: "the configuration is wrong",
    Code.NOT_RUNNING: "no cluster (or no supervisor, where one is needed) runs in this state folder",
    Code.NOT_READY: "not ready (in time): a gate is closed, or a slot did not get there",
    Code.TAKEN: "another supervisor holds the state folder, or somebody else the port",
    Code.REFUSED: "the request or the order was refused",
    Code.INTERRUPTED: "interrupted",
}


class CommandError(Exception):
    """The command ends here, with this exit code and this sentence."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
