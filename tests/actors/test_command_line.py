"""What a manager of processes tells an actor, and what is said of it when it cannot be right."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.__main__ import _address, main, parser, slot_name
from messages import logs
from messages.config import ConfigError
from messages.lifecycle import Exit
from tests.supervisor.cluster import Cluster, simulated


def test_a_slot_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_SLOT", "demo-decode-1")
    assert parser().parse_args(["decode", "--config", "x"]).slot == "demo-decode-1"
    assert parser().parse_args(["decode", "--config", "x", "--slot", "demo-decode-2"]).slot == "demo-decode-2"


@pytest.mark.parametrize(("host", "slot"), [("troupe-decode-0", "demo-decode-0"), ("a-12", "demo-decode-12")])
def test_or_take_its_number_from_the_host(host: str, slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert slot_name("demo-decode-{ordinal}") == slot


def test_a_host_without_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "3f0c9a7be1d2")
    with pytest.raises(ConfigError, match="'3f0c9a7be1d2', does not end in a hyphen and a number"):
        slot_name("demo-decode-{ordinal}")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger(logs.ROOT)
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def test_no_slot_at_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TROUPE_SLOT", raising=False)
    assert main(["decode", "--config", "x"]) == Exit.CONFIG
    assert "which slot is this? say --slot demo-decode-0, or set TROUPE_SLOT" in capsys.readouterr().err


def test_a_slot_of_the_supervisors_is_not_for_others_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, simulated())
    told = ["decode", "--config", str(cluster.config), "--slot", "demo-decode-0", "--state", str(tmp_path)]
    assert main(told) == Exit.CONFIG
    line = json.loads(capsys.readouterr().err)
    assert (line["slot"], line["level"]) == ("demo-decode-0", "error")
    assert line["text"].startswith("exit 10: demo-decode-0 is started by the supervisor")
    assert (tmp_path / "slots" / "demo-decode-0" / "exit.json").exists()


def test_a_state_folder_that_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    told = ["decode", "--config", "x", "--slot", "demo-decode-0", "--state", str(tmp_path / "file")]
    assert main(told) == Exit.CONFIG
    assert "cannot be made: Not a directory; --state names another" in capsys.readouterr().err


def test_a_name_is_advertised_as_the_address_that_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _address("localhost") in ("127.0.0.1", "::1")
    assert _address("192.0.2.7") == "192.0.2.7"
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert _address("auto") in ("127.0.0.1", "::1")
    monkeypatch.setattr(socket, "gethostname", lambda: "no.such.host.invalid")
    with pytest.raises(ConfigError, match="no.such.host.invalid is no address and no host that is known here"):
        _address("auto")
