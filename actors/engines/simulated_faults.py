"""The faults that the simulated engine shows on purpose, for drills, and how long the one of now still lasts."""

import os
import signal
import time
from typing import Final

FAULTS: Final = ("hang", "spin", "crash", "slow")


class Faults:
    """What is wrong with the engine at the moment; nothing, at first."""

    def __init__(self) -> None:
        self._hang_until = 0.0
        self._slow = (1.0, 0.0)

    def inject(self, fault: str, seconds: float) -> None:
        """Hang (no steps), spin (the loop blocked), crash (SIGKILL to itself), slow (ten times).

        Raises ValueError for any other.
        """
        if fault not in FAULTS:
            raise ValueError(f"the simulated engine cannot show {fault!r}; it can {', '.join(FAULTS)}")
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hang":
            self._hang_until = time.monotonic() + seconds
        if fault == "slow":
            self._slow = (10.0, time.monotonic() + seconds)
        if fault == "spin":
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass

    def factor(self) -> float:
        """How many times longer than it should all of it takes."""
        factor, until = self._slow
        return factor if time.monotonic() < until else 1.0

    def hangs_for(self) -> float:
        """For how many seconds it still does nothing; not above 0 if it does not hang."""
        return self._hang_until - time.monotonic()
