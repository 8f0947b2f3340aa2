"""What the benchmarks share: a nats-server, CPU time and memory of processes, medians, tables, JSON."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from messages import procfs

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def nats_server() -> Iterator[tuple[str, int]]:
    """Run a nats-server with JetStream on a free loopback port; gives its URL and pid."""
    binary = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if not binary:
        raise SystemExit("nats-server is missing; `make setup` installs it")
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", folder]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            yield _url(server), server.pid
        finally:
            server.kill()
            server.wait()


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"Listening for client connections on (127\.0\.0\.1:\d+)", line):
            return f"nats://{found[1]}"
    raise SystemExit("nats-server did not start")


def cpu(pid: int) -> float:
    """CPU seconds of one process; 0 if it is gone."""
    process = procfs.process(pid)
    return process.cpu_seconds if process is not None else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """The median; NaN of none."""
    return statistics.median(values) if values else float("nan")


def machine() -> dict[str, Any]:
    """What else was going on: cores and load averages when the benchmark began."""
    return {"cores": os.cpu_count(), "load": os.getloadavg(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of rows that have the same keys."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return (
        f"{value:,.0f}"
        if isinstance(value, float) and value >= 100
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def save(name: str, result: dict[str, Any]) -> None:
    """Write the result as JSON beside the benchmark."""
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}")
