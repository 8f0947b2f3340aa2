"""Starting, as it goes wrong for people: cut short half-way, and two clusters of the same name on one machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.stage import down
from tests.supervisor.cluster import Cluster, answer_of, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

PROCESSES = 4
"""Processor, prefill, decode, and the NATS server."""


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[list[Cluster]]:
    """Two clusters of the same configuration, each with a folder of its own, not yet started."""
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        made.append(Cluster(tmp_path / name, simulated()))
    yield made
    for cluster in made:
        cluster.close()


@pytest.mark.parametrize("moment", ["NATS server started", "demo-prefill-0#1 started", "demo-processor-0#1 started"])
def test_a_start_that_was_cut_short_is_finished_by_the_next(clusters: list[Cluster], moment: str) -> None:
    cluster, _ = clusters
    cluster.up(ready=False).until(moment)
    cluster.log.kill()
    cluster.up(ready=False).until("Ctrl-C drains", 30)
    assert len(cluster.living()) == PROCESSES, cluster.living()
    assert len(answer_of(cluster.command("submit", "Hello!", "--max-tokens", "3", "--no-stream", "--json"))["text"])
    down(cluster)


def test_two_clusters_of_one_name_know_nothing_of_each_other(clusters: list[Cluster]) -> None:
    one, other = clusters
    one.up(ready=False)
    other.up(ready=False)
    for cluster in clusters:
        cluster.log.until("Ctrl-C drains", 30)
    down(one)
    assert other.status().gates[0].open
    answer_of(other.command("submit", "Hello!", "--max-tokens", "3", "--no-stream", "--json"))
    down(other)
