"""The publisher under a real supervisor: there without being asked for, told of in the status, waited for by nobody."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]

PUBLISHER = "one-publisher-0"


def configuration(**publisher: Any) -> dict[str, Any]:
    """One slot a role, and a publisher as configured."""
    return simulated() | {"publisher": {"name": "one"} | publisher}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with a publisher, up."""
    made = Cluster(tmp_path, configuration())
    made.up()
    yield made
    made.close()


def test_it_is_there_it_comes_back_and_no_gate_asks_for_it(cluster: Cluster) -> None:
    cluster.log.until(rf"{PUBLISHER}#1 ready")
    before = cluster.status()
    assert [gate.alias for gate in before.gates] == ["demo"]
    told = cluster.command("status").stdout
    address = re.search(r"^metrics (http://127\.0\.0\.1:\d+)/metrics$", told, re.MULTILINE)
    assert address is not None, told
    with urlopen(f"{address[1]}/metrics", timeout=5) as answer:
        families = {family.name: family for family in parse(answer.read().decode())}
    slots = {sample.labels["slot"] for sample in families["troupe_slot_generation"].samples}
    assert slots == {slot.slot for slot in before.slots}

    cluster.kill(PUBLISHER)
    cluster.log.until(rf"{PUBLISHER}#2 ready")
    after = cluster.status()
    assert after.gates == before.gates, "the gate neither closed nor said that anything was missing"


def test_the_status_says_where_events_are_that_stay_on_zmq(tmp_path: Path) -> None:
    made = Cluster(tmp_path, configuration(events="zmq"))
    try:
        made.up()
        assert re.search(
            r"^events  demo-decode-0: tcp://127\.0\.0\.1:\d+$", made.command("status").stdout, re.MULTILINE
        )
    finally:
        made.close()


def test_without_it_the_cluster_is_whole(tmp_path: Path) -> None:
    made = Cluster(tmp_path, configuration(enabled=False))
    try:
        made.up()
        assert not any(slot.role == "publisher" for slot in made.status().slots)
        assert "metrics" not in made.command("status").stdout
    finally:
        made.close()
