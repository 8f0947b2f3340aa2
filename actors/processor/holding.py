"""How many bytes of bodies a door has in its hands: counted from their arrival until they are prompts, and bounded."""

from collections.abc import Iterator
from contextlib import contextmanager

from actors.processor.refusal import RefusalError
from messages.config import Limits


class Holding:
    """The bodies of one door; `bytes` is how many bytes they have together."""

    def __init__(self, door: str, limits: Limits) -> None:
        self._door = door
        self._limits = limits
        self.bytes = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold a body of `size` bytes while the body of the statement runs. Raises RefusalError 429 over the bound."""
        if self.bytes + size > self._limits.held_bytes:
            message = f"bodies of {self.bytes} bytes are being worked on at the {self._door} door already"
            message += f"; with the {size} of this one they would be more than {self._limits.held_bytes}"
            raise RefusalError(429, message, retry_after=self._limits.retry_after)
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size
