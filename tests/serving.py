"""Actors of one configuration with a NATS server of their own: started plainly or forked, and ended together."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import NatsServer
from tests.harness import Cast, Prefork


@contextlib.contextmanager
def serving(
    folder: Path, configuration: dict[str, Any], slots: Sequence[str], parent: Prefork | None
) -> Iterator[tuple[Cast, dict[str, int]]]:
    """Start these slots; yields their cast, and the pids of those that `parent` forked (all but the processors)."""
    server = NatsServer(folder / "jetstream")
    server.start()
    cast = Cast(folder, server.url, configuration)
    pids: dict[str, int] = {}
    try:
        for slot in slots:
            if parent is None or "processor" in slot:
                cast.start(slot)
            else:
                pids[slot] = parent.spawn(cast, slot)
        yield cast, pids
    finally:
        cast.stop()
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        server.stop()
