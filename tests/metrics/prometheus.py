"""The real Prometheus (Debian's package), as a process of a test's own on a free loopback port."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "compose" / "prometheus" / "alerts.yml"
SCRAPE = "500ms"


def program(name: str) -> str:
    """Find one of Prometheus's programs; skip the test without it, or fail where all are demanded."""
    found = shutil.which(name)
    if found is None:
        why = f"{name} is not installed (Debian has it in the package prometheus)"
        if os.environ.get("REQUIRE_ALL") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return found


def free_port() -> int:
    """Find a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Prometheus:
    """One server that scrapes these targets, by job, and judges by our alert rules, without waiting for a span."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        folder.mkdir()
        rules = yaml.safe_load(RULES.read_text())
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = "0s"
        (folder / "alerts.yml").write_text(yaml.safe_dump(rules))
        jobs = [{"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()]
        config = {
            "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": ["alerts.yml"],
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self._log = folder / "log"
        self._until_ready()

    def _until_ready(self, seconds: float = 20.0) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/-/ready", timeout=1):
                    return
            except (URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"Prometheus is not ready:\n{self._log.read_text()}")

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; return its samples."""
        return list(self._get("query", query=expression)["result"])

    def series(self, name: str) -> list[dict[str, str]]:
        """The labels of every series of a metric."""
        return [dict(one["metric"]) for one in self.ask(name)]

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {one["labels"]["alertname"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"}

    def _get(self, what: str, **fields: str) -> Any:
        with urlopen(f"{self.url}/api/v1/{what}?{urlencode(fields)}", timeout=5) as answer:
            return json.load(answer)["data"]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


def dashboards() -> dict[str, dict[str, Any]]:
    """Grafana's dashboards, by the names of their files."""
    folder = ROOT / "compose" / "grafana" / "dashboards"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def expressions(dashboard: dict[str, Any]) -> dict[str, str]:
    """Every expression of a dashboard, by its panel and letter."""
    found = {
        f"{panel['title']} ({target['refId']})": str(target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    return found | {f"annotation {one['name']}": str(one["expr"]) for one in dashboard["annotations"]["list"]}


def filled(expression: str, variables: dict[str, str]) -> str:
    """Put values in for Grafana's variables."""
    text = expression.replace("$__rate_interval", "5s")
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    assert "$" not in text, f"{text}: a variable that is not known"
    return text


def label_of(variable: dict[str, Any]) -> tuple[str, str]:
    """The metric and the label of which a dashboard's variable has the values."""
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert found, variable["query"]
    return found[1], found[2]
