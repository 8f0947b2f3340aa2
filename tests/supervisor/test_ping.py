"""`troupe ping`: what a health check asks, and what its exit code says."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.commands.codes import Code
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(60)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, simulated())
    made.up()
    yield made
    made.close()


def test_who_is_well_and_who_is_not(cluster: Cluster) -> None:
    done = cluster.command("ping", "demo-decode-0")
    assert (done.returncode, done.stdout) == (Code.OK, "demo-decode-0#1 is ready\n")
    done = cluster.command("ping")
    assert done.returncode == Code.OK
    assert "with JetStream, and takes messages of 8388608 bytes" in done.stdout
    done = cluster.command("ping", "supervisor")
    assert done.returncode == Code.OK
    assert "gates: demo open" in done.stdout

    done = cluster.command("ping", "demo-decode-7")
    assert (done.returncode, done.stderr) == (
        Code.NOT_RUNNING,
        "troupe ping: demo-decode-7 is not there: it is not ready yet, or has ended\n",
    )
    assert cluster.command("ping", "decode").returncode == Code.USAGE
    cluster.log.kill()
    assert cluster.command("ping", "supervisor").stderr == "troupe ping: no supervisor answers\n"
    cluster.kill("demo-decode-0", signal.SIGSTOP)
    done = cluster.command("ping", "demo-decode-0")
    assert done.returncode == Code.NOT_READY
    assert "does not answer within 3 s: it hangs" in done.stderr
    cluster.kill("demo-decode-0", signal.SIGCONT)
