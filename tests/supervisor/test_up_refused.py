"""What keeps a cluster from starting is said in one sentence, with its own exit code, and leaves nothing behind."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from supervisor import spawner
from supervisor.cli import main
from tests.conftest import NatsServer
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(40)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, simulated())
    yield made
    made.close()


class Told(NamedTuple):
    """What a command said and how it ended."""

    returncode: int
    stdout: str
    stderr: str


Troupe = Callable[..., Told]


@pytest.fixture
def troupe(capsys: pytest.CaptureFixture[str]) -> Troupe:
    """The command line, in this process."""

    def run(*arguments: str) -> Told:
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = int(str(end.code))
        return Told(code, *capsys.readouterr())

    return run


def refused(cluster: Cluster, code: int, *words: str) -> None:
    """See that `troupe up` ends with this code and these words, and that nothing runs afterwards."""
    up = cluster.up(ready=False)
    assert up.ended() == code, up.text
    for word in words:
        assert word in up.lines[-1]
    assert cluster.living() == []


@pytest.mark.parametrize("command", ["up", "check"])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("decode:", "decoder:", ["models[0].cast", "decoder"]),
        ("load_deadline: 20.0", "load_deadline: -1", ["models[0].load_deadline"]),
        ("tokenizer: ", "tokenizer: /nowhere", ["models[0].tokenizer: /nowhere", "tokenizer.json"]),
        ("engine: simulated", "engine: simulate", ["models[0].engine"]),
        ("models:", "modles:", ["modles: unknown; did you mean 'models'?"]),
    ],
)
def test_a_wrong_configuration(
    troupe: Troupe, cluster: Cluster, command: str, old: str, new: str, words: list[str]
) -> None:
    text = cluster.config.read_text()
    assert old in text
    cluster.config.write_text(text.replace(old, new))
    done = troupe(command, str(cluster.config), *(["--state", str(cluster.state.root)] if command == "up" else []))
    assert done.returncode == 3
    for word in [str(cluster.config), *words]:
        assert word in done.stderr
    assert not cluster.state.root.exists()


def test_a_configuration_that_is_not_there(troupe: Troupe, tmp_path: Path) -> None:
    done = troupe("up", str(tmp_path / "none.yaml"))
    assert (done.returncode, "none.yaml: cannot be read: No such file or directory" in done.stderr) == (3, True)


def test_an_http_port_that_is_somebody_elses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        cluster = Cluster(tmp_path, simulated(processor={"http": {"port": port}}))
        with contextlib.closing(cluster):
            refused(cluster, 6, f"http.port: {port} on 127.0.0.1 is in use by somebody else")


def test_a_nats_port_that_is_somebody_elses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        configuration = simulated() | {"nats": {"port": other.getsockname()[1]}}
        cluster = Cluster(tmp_path, configuration)
        with contextlib.closing(cluster):
            refused(cluster, 1, "nats.port", "is in use by somebody else")


def test_a_nats_server_without_jetstream(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "jetstream", jetstream=False)
    server.start()
    cluster = Cluster(tmp_path, simulated() | {"nats": {"url": server.url}})
    with contextlib.closing(cluster):
        refused(cluster, 1, "has no JetStream; start it with -js")
    server.stop()


def test_a_nats_server_of_ones_own_is_used_and_left_alone(tmp_path: Path, nats_server: NatsServer) -> None:
    cluster = Cluster(tmp_path, simulated() | {"nats": {"url": nats_server.url}})
    with contextlib.closing(cluster):
        cluster.up()
        assert cluster.status().nats == [nats_server.url]
        assert cluster.command("submit", "Hello!", "--max-tokens", "4").returncode == 0
        cluster.log.process.send_signal(signal.SIGTERM)
        assert cluster.log.ended() == 0
    assert nats_server.process is not None
    assert nats_server.process.poll() is None


def test_another_clusters_processes_in_the_state_folder(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up()
    cluster.log.kill()
    (tmp_path / "other").mkdir()
    other = Cluster(tmp_path / "other", simulated())
    other.state = cluster.state
    up = other.up(ready=False)
    assert up.ended() == 6
    assert f"still run, started from {cluster.config}; `troupe down` ends them" in up.lines[-1]


def test_a_slot_that_is_in_the_cast_no_more_is_ended(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, simulated(decode={"count": 2}))
    with contextlib.closing(cluster):
        cluster.up()
        cluster.log.kill()
        stray = cluster.record("demo-decode-1")
        cluster.config.write_text(cluster.config.read_text().replace("count: 2", "count: 1"))
        cluster.up(ready=False)
        cluster.log.until("demo-decode-1#1 is in the cast no more; it is ended")
        cluster.log.until("demo-processor-0#1 ready")
        assert cluster.command("status", "--wait-ready", "10").returncode == 0
        assert "demo-decode-1" not in cluster.command("status").stdout
        assert not spawner.lives(stray)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        ((), 2, "COMMAND"),
        (("up",), 2, "CONFIG"),
        (("frobnicate",), 2, "invalid choice: 'frobnicate'"),
        (("status", "--wait-ready", "soon"), 2, "'soon' is no number of seconds"),
        (("down", "--timeout", "-1"), 2, "-1 is no span of time"),
        (("submit", "Hello!", "--nats", "nats://127.0.0.1:1"), 2, "--nats needs --model too"),
    ],
)
def test_a_wrong_command_line(troupe: Troupe, arguments: tuple[str, ...], code: int, word: str) -> None:
    done = troupe(*arguments)
    assert (done.returncode, word in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("command", ["status", "drain", "restart", "logs", "submit"])
def test_commands_without_a_cluster_say_how_to_start_one(troupe: Troupe, tmp_path: Path, command: str) -> None:
    arguments = {"status": [], "submit": ["Hello!"]}.get(command, ["demo-decode-0"])
    done = troupe(command, *arguments, "--state", str(tmp_path))
    assert done.returncode == 4
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize("command", ["up", "check", "status", "submit", "drain", "restart", "logs", "down"])
def test_each_commands_help_has_an_example(troupe: Troupe, command: str) -> None:
    done = troupe(command, "--help")
    assert done.returncode == 0
    assert f"example: troupe {command}" in done.stdout


def test_the_help_says_what_the_exit_codes_mean(troupe: Troupe) -> None:
    done = troupe("--help")
    assert done.returncode == 0
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130):
        assert f"\n  {code} " in done.stdout


def test_a_file_where_the_state_folder_should_be(tmp_path: Path, troupe: Troupe, cluster: Cluster) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        told = troupe("up", str(cluster.config), "--state", str(path))
        assert (told.returncode, told.stdout) == (1, "")
        assert f"{path} cannot be made: a file is in its place" in told.stderr


def test_an_option_that_is_none_is_answered_with_the_usage_of_its_command(troupe: Troupe) -> None:
    told = troupe("up", "--bad", "configs/demo.yaml")
    assert told.returncode == 2
    assert told.stderr.startswith("usage: troupe up ")
    assert "unrecognized arguments: --bad" in told.stderr
