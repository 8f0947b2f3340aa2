"""The stack of compose/ as data: what each container runs, with what, as compose itself would read it."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
CONFIG = "/opt/troupe/configs/containers.yaml"
"""The configuration in the image, and in every command."""

Service = dict[str, Any]


def services(*files: str) -> dict[str, Service]:
    """Read compose files one over the other, the later ones replacing whole keys of a service."""
    found: dict[str, Service] = {}
    for file in files or ("compose.yaml",):
        for name, service in yaml.safe_load((COMPOSE / file).read_text())["services"].items():
            found[name] = found.get(name, {}) | service
    return found


def actors() -> dict[str, Service]:
    """The containers of actors, by slot."""
    return {
        service["environment"]["TROUPE_SLOT"]: service
        for service in services().values()
        if service["command"][:3] == ["python", "-m", "actors"]
    }


def seconds(span: str) -> float:
    """Read a span of time as compose writes it: 60s, 2m."""
    found = re.fullmatch(r"(\d+)(s|m)", span)
    assert found, span
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


def targets() -> dict[str, str]:
    """The stages of the Dockerfile, each with what it is made from."""
    text = (COMPOSE / "Dockerfile").read_text()
    return {found[2]: found[1] for found in re.finditer(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)}
