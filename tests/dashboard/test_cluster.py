"""The page's API on a whole cluster: what it tells, what it does for those with the token, and where it listens."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.dashboard import token
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]


class Api:
    """The API of one cluster's page."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        record = cluster.state.cluster()
        assert record is not None
        self.url = record.dashboard
        self.secret = token.read(cluster.state.token_file)

    def ask(self, path: str, method: str = "GET", *, trusted: bool = False) -> tuple[int, str]:
        """Return the status and the text of an answer."""
        headers = {"Authorization": f"Bearer {self.secret}"} if trusted else {}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def read(self, path: str) -> Any:
        status, text = self.ask(path)
        assert status == 200, text
        return json.loads(text)

    def slot(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.read("/api/status")["slots"][name]
        return found

    def until(self, name: str, fits: Callable[[dict[str, Any]], bool], seconds: float = 25.0) -> dict[str, Any]:
        """Wait for a slot to be as wanted."""
        deadline = time.monotonic() + seconds
        while not fits(slot := self.slot(name)):
            assert time.monotonic() < deadline, slot
            time.sleep(0.05)
        return slot

    def events(self, query: str, fits: Callable[[list[Any]], bool], seconds: float = 15.0) -> list[Any]:
        """Wait for the history to be as wanted: it comes by way of NATS."""
        deadline = time.monotonic() + seconds
        while not fits(found := self.read(f"/api/events?{query}")["events"]):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return list(found)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), simulated(decode={"count": 2}))
    cluster.up()
    yield Api(cluster)
    cluster.close()


def test_the_url_and_the_token_are_told_to_its_owner(api: Api) -> None:
    said = api.cluster.command("status").stdout
    assert f"page    {api.url}  (token for actions: {api.secret})" in said
    assert any(line.strip() == f"page    {api.url}" for line in api.cluster.log.lines)
    assert api.secret not in api.cluster.log.text
    assert api.secret not in api.cluster.command("status", "--json").stdout
    assert api.cluster.state.token_file.stat().st_mode & 0o777 == 0o600
    assert api.url.startswith("http://127.0.0.1:")


def test_what_needs_the_token_does_nothing_without_it(api: Api) -> None:
    before = api.cluster.records()
    for method, path in (
        ("POST", "/api/slots/demo-decode-0/drain"),
        ("POST", "/api/drills/kill"),
        ("DELETE", "/api/drills"),
        ("GET", "/api/slots/demo-decode-0/log"),
        ("GET", "/api/events/1"),
    ):
        assert api.ask(path, method)[0] == 401
    assert api.ask("/api/slots/demo-decode-0/drain", "GET")[0] in (404, 405)
    assert api.cluster.records() == before


def test_orders_are_carried_out_and_told(api: Api) -> None:
    generation = api.slot("demo-decode-0")["generation"]
    status, text = api.ask("/api/slots/demo-decode-0/restart-now", "POST", trusted=True)
    assert (status, json.loads(text)["done"]) == (200, True)
    back = api.until("demo-decode-0", lambda slot: slot["state"] == "ready" and slot["generation"] > generation)
    assert (back["reason"], back["planned"]) == ("restart asked for", True)
    assert api.ask("/api/slots/demo-decode-1/take-out", "POST", trusted=True)[0] == 200
    api.until("demo-decode-1", lambda slot: slot["state"] == "stopped" and slot["reason"] == "taken out")
    status, text = api.ask("/api/slots/demo-decode-1/drain", "POST", trusted=True)
    assert (status, json.loads(text)["message"]) == (409, "demo-decode-1 is stopped already")
    assert api.ask("/api/slots/demo-decode-1/restart", "POST", trusted=True)[0] == 200
    api.until("demo-decode-1", lambda slot: slot["state"] == "ready")
    asked = api.events("what=asked", lambda found: len(found) >= 4)
    assert [(event["of"], event["detail"]["order"], event["detail"]["done"]) for event in asked] == [
        ("demo-decode-0", "restart-now", True),
        ("demo-decode-1", "take-out", True),
        ("demo-decode-1", "drain", False),
        ("demo-decode-1", "restart", True),
    ]
    assert "from 127.0.0.1" in asked[0]["reason"]
    assert api.ask("/api/slots/no-such-slot/drain", "POST", trusted=True)[0] == 404
    assert api.ask("/api/slots/demo-decode-0/explode", "POST", trusted=True)[0] == 404


def test_a_death_is_told_and_its_log_lines_only_to_those_with_the_token(api: Api) -> None:
    generation = api.cluster.kill("demo-prefill-0")
    api.until("demo-prefill-0", lambda slot: slot["state"] == "ready" and slot["generation"] > generation)
    (died,) = api.events("of=demo-prefill-0&what=died", lambda found: len(found) == 1)
    assert died["reason"] == "killed by SIGKILL"
    assert isinstance(died["detail"]["last_lines"], int)
    whole = json.loads(api.ask(f"/api/events/{died['seq']}", trusted=True)[1])
    assert any("ready" in line for line in whole["event"]["detail"]["last_lines"])
    ready = api.events("of=demo-prefill-0&what=ready", lambda found: len(found) == 2)[-1]
    assert set(ready["detail"]["recovery"]) >= {"detect", "backoff", "load"}
    status, text = api.ask("/api/slots/demo-prefill-0/log?previous=1", trusted=True)
    assert (status, "ready" in text) == (200, True)
    for wrong in ("?previous=99", "?lines=x", "?lines=0"):
        assert api.ask(f"/api/slots/demo-prefill-0/log{wrong}", trusted=True)[0] in (400, 404)
    assert api.ask("/api/slots/..%2f..%2fcluster.json/log", trusted=True)[0] == 404


def test_a_request_is_found_by_its_id(api: Api) -> None:
    submitted = api.cluster.command("submit", "Hello", "--max-tokens", "4", "--json", "--no-stream")
    request = json.loads(submitted.stdout)["id"]
    (way,) = api.read(f"/api/requests/{request}")["ways"]
    whats = [station["what"] for station in way["stations"]]
    assert (whats[0], whats[-1]) == ("submitted", "finished")
    assert api.ask("/api/requests/00000000-0000-0000-0000-000000000000")[0] == 404
    assert api.ask("/api/requests/nonsense")[0] == 400


def test_a_port_that_is_taken(tmp_path: Path, api: Api) -> None:
    """A configured one is an error before anything is started; the usual one makes way for a free one."""
    port = int(api.url.rpartition(":")[2])
    other = Cluster(tmp_path, simulated() | {"dashboard": {"port": port}})
    up = other.up(ready=False)
    assert up.ended() == 6
    assert f"dashboard.port: {port} on 127.0.0.1 is in use by somebody else" in up.lines[-1]
    assert other.living() == []


def test_the_usual_port_makes_way(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from messages.config import Dashboard
    from supervisor.dashboard import listen

    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        usual = taken.getsockname()[1]
        monkeypatch.setattr(listen, "PORT", usual)
        with listen.listen(Dashboard(), 0) as free:
            port = free.getsockname()[1]
            assert port != usual
        with listen.listen(Dashboard(), port) as again:
            assert again.getsockname()[1] == port


def test_a_drill_is_played_one_at_a_time_and_ended(api: Api) -> None:
    known = api.read("/api/drills")
    assert known["allowed"]
    assert "kill" in {one["name"] for one in known["drills"]}
    assert api.ask("/api/drills/no-such-drill", "POST", trusted=True)[0] == 404
    assert api.ask("/api/drills/control", "POST", trusted=True)[0] == 200
    status, text = api.ask("/api/drills/kill", "POST", trusted=True)
    assert (status, json.loads(text)["error"]) == (409, "a drill is being played already (control); one at once")
    assert api.read("/api/drills")["playing"]["drill"] == "control"
    (asked,) = api.events("topic=drill&what=asked", lambda found: len(found) == 1)
    assert asked["of"] == "control"
    deadline = time.monotonic() + 20
    while "this hurts the running cluster" not in api.read("/api/drills")["text"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert api.ask("/api/drills", "DELETE", trusted=True)[0] == 200
    while api.read("/api/drills")["playing"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for wrong in ("..%2f..", ".", "no-such-run", "%2e%2e"):
        assert api.ask(f"/api/drills/{wrong}/report")[0] == 404
