"""Each trouble of docs/troubleshooting.md, brought about for real: a scene returns all that its user would have seen.

`python -m tests.docs.scenes NAME` shows one.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from messages import codec
from messages.bus import Bus
from messages.config import Nats
from messages.lifecycle import Control
from messages.subjects import Subjects
from tests.cluster.manager import Manager
from tests.conftest import NatsServer
from tests.supervisor.cluster import ROOT, Cluster, simulated

ADDRESS_SPACE: Final = 3_400_000
"""KiB, in which Python can import all of SGLang, and no engine can be made."""

Scene = Callable[[Path], str]


@contextlib.contextmanager
def up(folder: Path, configuration: dict[str, Any], until: str = "Ctrl-C drains") -> Iterator[Cluster]:
    """A cluster, once its supervisor has said something."""
    cluster = Cluster(folder, configuration)
    try:
        cluster.up(ready=False).until(until, 40)
        yield cluster
    finally:
        cluster.close()


@contextlib.contextmanager
def nats(folder: Path, *options: str, jetstream: bool = True) -> Iterator[NatsServer]:
    server = NatsServer(folder / "jetstream", *options, jetstream=jetstream)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def external(folder: Path, **of_nats: Any) -> Cluster:
    """The configuration of a cluster whose actors somebody else starts."""
    made = simulated()
    made["nats"] = of_nats
    made["models"][0]["spawn"] = "external"
    return Cluster(folder, made)


def actor(cluster: Cluster, *options: str) -> str:
    """What an actor says that is started by hand, until it ends."""
    manager = Manager(cluster.config.parent / "hosts", cluster.config, [])
    manager.launch("demo-decode-0", *options).wait(40)
    return manager.said("demo-decode-0")


def both(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def shown(cluster: Cluster, *more: str) -> str:
    """What the supervisor has said, and what the commands say."""
    return "\n".join([cluster.log.text, both(cluster.command("status")), *more])


def nats_away(folder: Path) -> str:
    cluster = external(folder, url="nats://127.0.0.1:1")
    return both(cluster.command("ping", "--config", str(cluster.config)))


def nats_password(folder: Path) -> str:
    with nats(folder, "--user", "troupe", "--pass", "right") as server:
        cluster = external(folder, url=server.url, user="troupe", password="wrong")
        return both(cluster.command("ping", "--config", str(cluster.config)))


def no_jetstream(folder: Path) -> str:
    with nats(folder, jetstream=False) as server:
        return actor(external(folder, url=server.url))


def second_life(folder: Path) -> str:
    with nats(folder) as server:
        cluster = external(folder, url=server.url)
        manager = Manager(folder / "hosts", cluster.config, ["demo-decode-0"])
        try:
            manager.start()
            said = _until_ready(manager)
            second = manager.launch("demo-decode-0")
            second.wait(20)
            return said + manager.said("demo-decode-0")
        finally:
            manager.stop()


def _until_ready(manager: Manager) -> str:
    for _ in range(2_000):
        if " ready after " in (said := manager.said("demo-decode-0")):
            return said
        with contextlib.suppress(subprocess.TimeoutExpired):
            manager._processes["demo-decode-0"].wait(0.01)
    raise AssertionError(said)


def stale_life(folder: Path) -> str:
    async def claim(url: str) -> None:
        bus = await Bus.connect(Nats(url=url), name="test", wait=5)
        await (await bus.bucket(Subjects().registry_bucket)).put("gen.demo-decode-0", b"2")
        await bus.close()

    with nats(folder) as server:
        asyncio.run(claim(server.url))
        return actor(external(folder, url=server.url), "--generation", "1")


def gate_configuration(folder: Path) -> str:
    made = simulated()
    made["models"][0]["chat_template"] = str(folder / "chat.jinja")
    (folder / "chat.jinja").write_text("{% for message in messages %}{{ message.content }}")
    with up(folder, made, "demo-processor-0#1 failed") as cluster:
        return shown(cluster, both(cluster.command("logs", "demo-processor-0")))


def gate_external(folder: Path) -> str:
    with nats(folder) as server:
        made = simulated(decode={"spawn": "external"})
        made["nats"] = {"url": server.url}
        with up(folder, made, "demo-processor-0#1 ready") as cluster:
            return shown(cluster, both(cluster.command("submit", "Hello!", "--timeout", "1")))


def slow_start(folder: Path) -> str:
    made = simulated(decode={"load_deadline": 1.0, "restart": {"crashes_before_ready": 0}})
    made["models"][0]["simulated"] = {"load": 60.0}
    with up(folder, made, "demo-decode-0#1 failed") as cluster:
        return shown(cluster)


def starting(folder: Path) -> str:
    made = simulated()
    made["models"][0]["simulated"] = {"load": 5.0}
    with up(folder, made, "demo-processor-0#1 ready") as cluster:
        said = shown(cluster)
        cluster.log.until("Ctrl-C drains", 20)
        return said + cluster.log.text


def killed(folder: Path) -> str:
    with up(folder, simulated()) as cluster:
        cluster.kill("demo-decode-0")
        cluster.log.until("demo-decode-0#2 ready", 20)
        return shown(cluster, both(cluster.command("logs", "demo-decode-0", "--previous", "1")))


def probe(folder: Path) -> str:
    made = simulated()
    made["models"][0]["probe"] = {"idle": 0.5, "deadline": 2.0}
    with up(folder, made) as cluster:
        asyncio.run(_fault(cluster, "demo-decode-0", "hang"))
        cluster.log.until("demo-decode-0#2 ready", 40)
        return shown(cluster)


async def _fault(cluster: Cluster, slot: str, fault: str) -> None:
    record = await asyncio.to_thread(cluster.state.cluster)
    assert record is not None
    bus = await Bus.connect(record.nats, name="test", wait=5)
    asked = codec.to_json(Control(fault=fault, seconds=60))
    await bus.request(Subjects(record.cluster).control(slot, "fault"), asked, timeout=15)
    await bus.close()


def metrics_port(folder: Path) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        made = simulated()
        made["publisher"] = {"name": "host", "http": {"port": taken.getsockname()[1]}}
        with up(folder, made, "host-publisher-0#1 failed") as cluster:
            cluster.log.until("Ctrl-C drains", 20)
            return shown(cluster)


def metrics_where(folder: Path) -> str:
    made = simulated()
    made["publisher"] = {"name": "host", "events": "zmq"}
    with up(folder, made) as cluster:
        cluster.log.until("host-publisher-0#1 ready", 20)
        return shown(cluster)


def engine_memory(folder: Path) -> str:
    """The real SGLang under a limit on its address space."""
    with nats(folder) as server:
        made = simulated()
        made["nats"] = {"url": server.url}
        made["logs"] = {"format": "text"}
        path = str(ROOT / "models" / "troupe-small-chat")
        made["models"][0] |= {
            "spawn": "external",
            "engine": "sglang",
            "device": "cpu",
            "path": path,
            "load_deadline": 150,
        }
        cluster = Cluster(folder, made)
        command = f'ulimit -v {ADDRESS_SPACE}; exec "{sys.executable}" -m actors decode'
        command += f' --config "{cluster.config}" --slot demo-decode-0 --state "{folder / "host"}"'
        return both(subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=170))


def payload_server(folder: Path) -> str:
    made = simulated(decode={"restart": {"crashes_before_ready": 0}})
    made["nats"] = {"max_payload": 65_536}
    made["models"][0]["context_length"] = 32_768
    with up(folder, made, "demo-decode-0#1 failed") as cluster:
        return shown(cluster)


def payload_request(folder: Path) -> str:
    made = simulated()
    made["nats"] = {"max_payload": 65_536}
    made["models"][0]["context_length"] = 4_096
    with up(folder, made) as cluster:
        return both(cluster.command("submit", "word " * 20_000))


def no_supervisor(folder: Path) -> str:
    with up(folder, simulated()) as cluster:
        cluster.log.kill()
        cluster.kill("demo-decode-0")
        return both(cluster.command("status")) + both(cluster.command("restart", "demo-decode-0"))


def other_cluster(folder: Path) -> str:
    with up(folder, simulated()) as cluster:
        cluster.log.kill()
        other = folder / "other.yaml"
        other.write_bytes(cluster.config.read_bytes())
        return both(cluster.command("up", str(other)))


def port_taken(folder: Path) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cluster = Cluster(folder, simulated(processor={"http": {"port": taken.getsockname()[1]}}))
        return both(cluster.command("up", str(cluster.config)))


def nats_lost(folder: Path) -> str:
    made = simulated(decode={"restart": {"backoff": 0.1}})
    with nats(folder) as server:
        made["nats"] = {"url": server.url, "grace": 1.0}
        with up(folder, made) as cluster:
            server.stop()
            cluster.log.until("demo-decode-0#1 died: .*bus lost", 20)
            said = shown(cluster)
            server.start()
            cluster.log.until("demo-decode-0#2 ready", 30)
            return said + cluster.log.text


SCENES: Final[dict[str, Scene]] = {
    scene.__name__.replace("_", "-"): scene
    for scene in (
        nats_away,
        nats_password,
        no_jetstream,
        second_life,
        stale_life,
        nats_lost,
        gate_configuration,
        gate_external,
        probe,
        metrics_port,
        metrics_where,
        starting,
        slow_start,
        killed,
        engine_memory,
        payload_server,
        payload_request,
        no_supervisor,
        other_cluster,
        port_taken,
    )
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        sys.stdout.write(SCENES[sys.argv[1]](Path(made)) + "\n")
