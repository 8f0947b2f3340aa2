"""The examples of docs/submitting.md, taken out of the page as they stand, with a cluster's addresses put in."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.harness import ROOT

PAGE = ROOT / "docs" / "submitting.md"
NODE_MODULES = ROOT / ".venv" / "node" / "node_modules"
SECONDS = 30.0

_BLOCK = re.compile(r"^```(?P<language>\w+)(?: (?P<struct>\w+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?:#|//) (?P<name>[\w.-]+)\n")


class Example(NamedTuple):
    """One block of the page; `name` is what its first line calls it, or the struct that a JSON block shows."""

    language: str
    name: str
    text: str


def examples() -> dict[str, Example]:
    """All blocks of the page that say what they are, by name."""
    found = {}
    for block in _BLOCK.finditer(PAGE.read_text()):
        named = _NAME.match(block["text"])
        name = block["struct"] or (named["name"] if named else "")
        assert name, f"an example without a name, which no test would run:\n{block[0]}"
        assert name not in found, name
        found[name] = Example(block["language"], name, block["text"])
    return found


class Folder:
    """A folder with the page's programs, which speak to one cluster."""

    def __init__(self, folder: Path, nats: str, http: str) -> None:
        self.folder = folder
        self.files: set[str] = set()
        for example in examples().values():
            if example.language == "json":
                continue
            text = example.text.replace("nats://127.0.0.1:4222", nats).replace("http://127.0.0.1:8000", http)
            (folder / example.name).write_text(text)
            self.files.add(example.name)
        if NODE_MODULES.is_dir():
            (folder / "node_modules").symlink_to(NODE_MODULES)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of them; its output is on its stdout."""
        command = {".py": sys.executable, ".mjs": "node"}.get(Path(name).suffix, "sh")
        return subprocess.Popen(
            [command, name, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, name: str, *arguments: str) -> str:
        """Run one of them to its good end; return what it has written."""
        said, wrong = self.start(name, *arguments).communicate(timeout=SECONDS)
        assert not wrong, wrong
        return said.decode()


def has_nats_js() -> bool:
    """Whether Node and nats.js are here."""
    return NODE_MODULES.is_dir() and shutil.which("node") is not None
