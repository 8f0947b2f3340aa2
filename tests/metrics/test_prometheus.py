"""The real Prometheus scrapes a live cluster with traffic, and is asked all that Grafana's dashboards ask of it."""

import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from messages.metrics import CLUSTER, HOST, full_name
from supervisor.cli import main as troupe
from supervisor.commands.codes import Code
from tests.metrics.prometheus import Prometheus, dashboards, expressions, filled, free_port, label_of
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.drill, pytest.mark.timeout(180)]

SECONDS = 30.0
VICTIM = "demo-decode-0"


@pytest.fixture
def ports() -> dict[str, int]:
    """Where the supervisor and the publisher are to listen: Prometheus takes seconds to look at its targets."""
    return {"troupe-supervisor": free_port(), "troupe-publisher": free_port()}


@pytest.fixture
def server(tmp_path: Path, ports: dict[str, int]) -> Iterator[Prometheus]:
    targets = {job: f"127.0.0.1:{port}" for job, port in ports.items()}
    made = Prometheus(tmp_path / "prometheus", targets)
    yield made
    made.stop()


@pytest.fixture
def cluster(tmp_path: Path, ports: dict[str, int]) -> Iterator[Cluster]:
    wanted = simulated(decode={"count": 2, "restart": {"backoff": 0.1}})
    wanted["publisher"] = {"http": {"port": ports["troupe-publisher"]}}
    wanted["dashboard"] = {"port": ports["troupe-supervisor"]}
    wanted["models"][0] |= {"simulated": {"ttft": 0.01, "itl": 0.003}, "probe": {"idle": 0.5}}
    made = Cluster(tmp_path, wanted)
    yield made
    made.close()


class Traffic:
    """Clients that ask without a pause, in threads, until the block is left."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(3)]
        self.answered = 0
        self.last = ""
        """The id of the answer that came last."""

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)

    def _ask(self, number: int) -> None:
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("chat/completions", {"messages": [{"role": "user", "content": f"Hello {number}!"}]}),
            ("completions", {"prompt": f"Once {number}"}),
        ]
        while not self._over.is_set():
            for path, body in bodies:
                data = json.dumps(body | {"model": "demo", "max_tokens": 60, "stream": True}).encode()
                request = Request(f"{self._url}/v1/{path}", data, {"content-type": "application/json"})
                try:
                    with urlopen(request, timeout=20) as answer:
                        said = re.search(rb'"id":"([^"]+)"', answer.read())
                        assert said is not None
                        self.last = said[1].decode()
                        self.answered += 1
                except (HTTPException, OSError):
                    self._over.wait(0.1)


def until(check: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until `check` gives something; return it."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"{check} gives {found!r}"
        time.sleep(0.1)
    return found


def page(url: str, accept: str = "") -> str:
    with urlopen(Request(f"{url}/metrics", headers={"Accept": accept}), timeout=5) as answer:
        return str(answer.read().decode())


def samples(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of a scrape, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(page(url))
        for sample in family.samples
    }


def test_every_panel_has_figures_and_no_counter_falls(
    server: Prometheus, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.up()
    status = cluster.status()
    supervisor = status.dashboard
    publisher = next(slot.http for slot in status.slots if slot.role == "publisher")
    until(lambda: len(server.ask("up == 1")) == 2)
    with Traffic(next(iter(status.http.values()))) as traffic:
        until(lambda: traffic.answered > 3)
        cluster.kill(VICTIM, signal.SIGSTOP)
        cluster.log.until(f"{VICTIM}#2 ready after .* after it died")
        wanted = all_expressions(server)
        of_idle = {panel: asked for panel, asked in wanted.items() if "_probe_" in asked}
        empty = ask(server, {panel: asked for panel, asked in wanted.items() if panel not in of_idle})
        before = samples(supervisor)
        cluster.kill("demo-processor-0")
        answered = traffic.answered
        until(lambda: traffic.answered > answered + 3)
    empty |= ask(server, of_idle)
    assert not empty, f"no figures for {empty}"
    compare_with_the_table(supervisor, publisher)
    no_counter_falls(before, samples(supervisor))
    a_request_is_traced(cluster, traffic.last, capsys)
    raise_alarms(server, cluster)


def all_expressions(server: Prometheus) -> dict[str, str]:
    """Every expression of every panel, its variables filled with what Grafana would offer for them."""
    wanted = {}
    for name, dashboard in dashboards().items():
        variables = {one["name"]: one for one in dashboard["templating"]["list"]}
        for variable, one in variables.items():
            metric, label = label_of(one)
            offered = until(partial(server.series, metric))
            assert {"model": "demo", "slot": VICTIM}[variable] in {found[label] for found in offered}
        values = {"model": "demo", "slot": VICTIM}
        for panel, expression in expressions(dashboard).items():
            wanted[f"{name}: {panel}"] = filled(expression, values)
    return wanted


def ask(server: Prometheus, wanted: dict[str, str]) -> dict[str, str]:
    """Ask all of these until each has figures; return those that never had."""
    wanted = dict(wanted)
    deadline = time.monotonic() + SECONDS
    while wanted and time.monotonic() < deadline:
        for panel, expression in list(wanted.items()):
            if any(not math.isnan(float(sample["value"][1])) for sample in server.ask(expression)):
                del wanted[panel]
        time.sleep(0.2)
    return wanted


def compare_with_the_table(supervisor: str, publisher: str) -> None:
    """What is told is what the table has: names, kinds and labels, and nothing of it is missing."""
    for url, table in ((supervisor, CLUSTER), (publisher, HOST)):
        known = {full_name(line): line for line in table}
        families = [family for family in parse(page(url)) if family.name.startswith("troupe_")]
        told = {f"{family.name}_total" if family.type == "counter" else family.name: family for family in families}
        assert told.keys() == known.keys()
        for name, family in told.items():
            assert family.type == known[name].kind
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(known[name].labels), name
    assert "# EOF" in page(supervisor, "application/openmetrics-text; version=1.0.0")


def no_counter_falls(
    before: dict[tuple[str, frozenset[tuple[str, str]]], float],
    after: dict[tuple[str, frozenset[tuple[str, str]]], float],
) -> None:
    """Not by the restart of the only processor."""
    counters = {key for key in before if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}
    assert sum(before[key] for key in counters if key[0] == "troupe_completion_tokens_total") > 100
    fallen = {key: (before[key], after.get(key)) for key in counters if after.get(key, -1.0) < before[key]}
    assert not fallen


def a_request_is_traced(cluster: Cluster, request: str, written: pytest.CaptureFixture[str]) -> None:
    """By the id that an answer of the OpenAI API has."""

    def trace(*arguments: str) -> tuple[int, str]:
        code = troupe(["trace", *arguments, "--state", str(cluster.state.root)])
        said = written.readouterr()
        return code, said.out + said.err

    code, said = trace(request)
    assert code == 0, said
    steps = ["submitted", "routed", "accepted", "first token", "finished"]
    assert re.search(r"[\s\S]*".join(steps), said), said
    assert re.search(r"routed +demo-prefill-0#\d+, demo-decode-\d#\d+", said)
    assert "Hello" not in said and "Once" not in said
    (way,) = json.loads(trace(request, "--json")[1])
    assert (way["code"], way["tokens"]) == (200, 60)
    assert trace("6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01")[0] == Code.FAILED
    code, said = trace("x")
    assert (code, "is no UUID" in said) == (Code.USAGE, True)


def raise_alarms(server: Prometheus, cluster: Cluster) -> None:
    """What can be provoked at once is seen by Prometheus; the rest of the rules has histories of its own."""
    until(lambda: "SlotStalled" in server.firing())
    assert not server.firing() & {"GateClosed", "SupervisorAway", "SlotSilent", "SlotFailed"}
    assert cluster.command("drain", "demo-prefill-0", "--wait", "10").returncode == 0
    until(lambda: "GateClosed" in server.firing())
    tokens = server.ask("sum(troupe_completion_tokens_total)")[0]["value"][1]
    cluster.log.kill()
    until(lambda: "SupervisorAway" in server.firing())
    # The next one asks the processors, which are idle and tell nothing by themselves.
    cluster.up(ready=False)
    until(lambda: "SupervisorAway" not in server.firing())
    now = until(lambda: server.ask("sum(troupe_completion_tokens_total) > 0"))[0]["value"][1]
    assert int(now) <= int(tokens), "what the first life of the processor had counted is gone with it"
