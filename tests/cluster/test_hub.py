"""A model by its Hugging Face id: downloaded with progress, once, from where it stopped, and then there for good."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.stage import down
from tests.hub import Hub
from tests.supervisor.cluster import ROOT, Cluster, answer_of

pytestmark = [pytest.mark.nats, pytest.mark.timeout(240)]

FETCH = """
import sys
from pathlib import Path
from actors.engines.engine import ConfigurationError, LoadError
from actors.engines.model_files import find_model
try:
    print("FOLDER", find_model(sys.argv[1], lambda stage, text: print(stage, text, flush=True)))
except (ConfigurationError, LoadError) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has `someone/tiny`, and holds its weights back half-way; with it this test's own cache."""
    made = Hub(ROOT / "models" / "tiny", "someone/tiny", held=".safetensors")
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield made
    made.close()


def fetching(repository: str) -> subprocess.Popen[str]:
    """Begin to look for a model, in a process that ends with its group."""
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, repository], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def said(process: subprocess.Popen[str]) -> str:
    """All that it still says, until its end."""
    return process.communicate(timeout=60)[0]


def weights(hub: Hub) -> int:
    """How often the weights' bytes were asked for."""
    return sum(line.startswith("GET") and line.endswith("/model.safetensors") for line in hub.asked)


def test_a_download_that_was_killed_goes_on_where_it_stopped_and_is_then_found_without_the_hub(hub: Hub) -> None:
    first = fetching("someone/tiny")
    assert first.stdout is not None
    deadline = time.monotonic() + 60
    while weights(hub) == 0:
        assert time.monotonic() < deadline
        assert first.stdout.readline().startswith("download someone/tiny: ")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=10)
    hub.gate.set()
    second = said(fetching("someone/tiny"))
    assert "FOLDER" in second, second
    assert weights(hub) == 2
    folder = Path(second.split("FOLDER ")[1].strip())
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / file).read_bytes() == (ROOT / "models" / "tiny" / file).read_bytes()
    hub.close()
    assert said(fetching("someone/tiny")) == f"FOLDER {folder}\n"


def test_a_repository_that_is_not_there_is_a_fault_of_the_configuration(hub: Hub) -> None:
    assert "ConfigurationError someone/none: not to be had from Hugging Face: 404" in said(fetching("someone/none"))


def test_a_hub_that_cannot_be_reached_may_be_asked_again(hub: Hub) -> None:
    hub.close()
    assert "LoadError someone/tiny: not to be had from Hugging Face: " in said(fetching("someone/tiny"))


@pytest.mark.sglang
def test_a_cluster_downloads_its_model_says_how_far_it_is_and_needs_no_hub_afterwards(hub: Hub, tmp_path: Path) -> None:
    model = {
        "name": "tiny",
        "alias": "demo",
        "engine": "sglang",
        "path": "someone/tiny",
        "cast": {"processor": {"http": {"port": 0}}, "decode": {}},
    }
    hub.files["notes.txt"] = bytes(12_000_000)
    cluster = Cluster(tmp_path, {"publisher": {"enabled": False}, "models": [model]})
    try:
        cluster.up(ready=False).until("decode-0#1 downloads someone/tiny: ", 60)
        deadline = time.monotonic() + 30
        while not re.match(r"download someone/tiny: 12\.\d of 14\.9 MB", stage := cluster.slot("demo-decode-0").stage):
            assert time.monotonic() < deadline, stage
        hub.gate.set()
        cluster.log.until("Ctrl-C drains", 120)
        assert len(answer_of(submitted(cluster))["text"])
        hub.close()
        cluster.kill("demo-decode-0")
        cluster.log.until("demo-decode-0#2 ready", 60)
        assert len(answer_of(submitted(cluster))["text"])
        down(cluster)
    finally:
        cluster.close()


def submitted(cluster: Cluster) -> subprocess.CompletedProcess[str]:
    """Ask for a few words by the command line."""
    return cluster.command("submit", "Hello!", "--max-tokens", "3", "--no-stream", "--json", seconds=60)
