"""How every process logs: one line a fact, with who says it; on stderr, which the spawner sends to the slot's log."""

import logging
import sys
import time


def start(who: str, level: str = "info") -> None:
    """Set up logging for this process; `who` (`demo-decode-0#7`, `supervisor`) stands in each line."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ %(levelname)-7s {who} %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger("troupe")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
