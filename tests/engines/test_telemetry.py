"""What SGLang is told to tell, where that goes, and how its load figures are read: all of it without SGLang."""

import fcntl
import os
import pickle
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

from actors.engines import sglang_telemetry
from actors.engines.engine import ConfigurationError
from actors.engines.places import PATH_LIMIT, Places, free_ports, of_rank, prepare
from actors.engines.sglang_telemetry import Loads, sources_of, telemetry_arguments
from actors.setup import Setup
from messages import config, procfs
from messages.ids import parse_slot

KNOWN = ("kv_events_config", "enable_metrics", "dp_size", "enable_dp_attention")
PLACES = Places(endpoint="ipc:///run/x/tcp:0", replay="ipc:///run/x/tcp-replay:0", metrics="/run/m")


def setup(folder: Path, **publisher: Any) -> Setup:
    """What an actor is told, with the publisher configured so."""
    written = {
        "publisher": publisher,
        "models": [{"name": "demo", "engine": "simulated", "tokenizer": "x", "cast": {"processor": {}, "decode": {}}}],
    }
    cluster = config.parse(msgspec.yaml.encode(written), folder)
    model = cluster.models[0]
    slot = parse_slot("demo-decode-0")
    folder.mkdir(parents=True, exist_ok=True)
    return Setup(
        cluster=cluster, model=model, part=model.cast["decode"], slot=slot, generation=1, nats=cluster.nats,
        folder=folder,
    )  # fmt: skip


def told(asked: dict[str, Any], places: Places = PLACES) -> dict[str, Any]:
    """The `kv_events_config` that SGLang gets."""
    made: dict[str, Any] = msgspec.json.decode(telemetry_arguments(asked, places, KNOWN)["kv_events_config"])
    return made


@pytest.fixture
def knows_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of SGLang that can bind its events to one address, as 0.5.23."""
    monkeypatch.setattr(sglang_telemetry, "_can_bind", lambda: True)


def test_by_default_events_and_metrics_are_on_and_nobody_else_can_listen(tmp_path: Path) -> None:
    places = prepare(setup(tmp_path))
    assert places is not None
    folder = Path(places.endpoint.removeprefix("ipc://")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(places.metrics).st_mode) == 0o700
    made = telemetry_arguments({}, places, KNOWN)
    assert made["enable_metrics"] is True
    assert told({}, places) == {"publisher": "zmq", "endpoint": places.endpoint, "replay_endpoint": places.replay}


def test_an_earlier_lifes_files_are_gone_and_a_long_path_is_led_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * PATH_LIMIT)
    first = prepare(setup(deep))
    assert first is not None
    path = Path(first.endpoint.removeprefix("ipc://"))
    assert len(str(path)) <= PATH_LIMIT < len(str(deep))
    path.touch()
    (Path(first.metrics) / "counter_1.db").touch()
    second = prepare(setup(deep))
    assert second is not None
    assert not path.parent.exists()
    assert os.listdir(second.metrics) == []
    second.clear()
    assert not Path(second.endpoint.removeprefix("ipc://")).parent.exists()


def test_without_a_publisher_nothing_is_told(tmp_path: Path) -> None:
    assert prepare(setup(tmp_path, enabled=False)) is None
    assert telemetry_arguments({}, None, KNOWN) == {}
    assert telemetry_arguments({}, PLACES, ("model_path",)) == {}, "a version that has no KV events"


@pytest.mark.usefixtures("knows_bind")
def test_for_others_to_listen_ports_of_the_advertised_address_are_bound(tmp_path: Path) -> None:
    places = prepare(setup(tmp_path, events="zmq"), dp_ranks=2)
    assert places is not None
    base, _, port = places.endpoint.rpartition(":")
    assert (base, places.replay) == ("tcp://127.0.0.1", f"tcp://127.0.0.1:{int(port) + 2}")
    assert told({}, places)["bind"] is True
    assert [source.endpoint for source in places.sources(2)] == [f"{base}:{port}", f"{base}:{int(port) + 1}"]
    other = setup(tmp_path, events="zmq")
    other.part.advertise = "192.0.2.1"
    with pytest.raises(ConfigurationError, match=r"advertise: 192\.0\.2\.1"):
        prepare(other)


def test_a_version_that_cannot_bind_is_refused_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_telemetry, "_can_bind", lambda: False)
    places = Places(endpoint="tcp://127.0.0.1:5557", replay="tcp://127.0.0.1:5558", metrics="")
    with pytest.raises(ConfigurationError, match=r"publisher\.events: nats"):
        telemetry_arguments({}, places, KNOWN)
    with pytest.raises(ConfigurationError, match="IPv6"):
        telemetry_arguments({}, Places(endpoint="tcp://[::1]:5557", replay="", metrics=""), KNOWN)


def test_what_is_asked_for_counts_more_and_is_registered_as_others_reach_it() -> None:
    asked = {"kv_events_config": {"endpoint": "tcp://*:5557", "replay_endpoint": None}, "enable_metrics": False}
    made = telemetry_arguments(asked, PLACES, KNOWN)
    assert made["enable_metrics"] is False
    sources = sources_of(made, PLACES, "10.0.0.7", 2)
    assert [(source.dp_rank, source.endpoint, source.replay) for source in sources] == [
        (0, "tcp://10.0.0.7:5557", ""),
        (1, "tcp://10.0.0.7:5558", ""),
    ]
    assert (
        sources_of(telemetry_arguments({"kv_events_config": '{"publisher": "null"}'}, PLACES, KNOWN), PLACES, "h", 1)
        == []
    )
    with pytest.raises(ConfigurationError, match="not JSON"):
        telemetry_arguments({"kv_events_config": "zmq"}, PLACES, KNOWN)
    with pytest.raises(ConfigurationError, match="a mapping is wanted"):
        telemetry_arguments({"kv_events_config": 5}, PLACES, KNOWN)


def test_where_nobody_can_take_its_metrics_they_are_off_unless_asked_for() -> None:
    assert "enable_metrics" not in telemetry_arguments({"dp_size": 2}, PLACES, KNOWN)
    assert "enable_metrics" in telemetry_arguments({"dp_size": 2, "enable_dp_attention": True}, PLACES, KNOWN)


@pytest.mark.parametrize(
    ("endpoint", "rank", "expected"),
    [
        ("tcp://[fd00::1]:5557", 3, "tcp://[fd00::1]:5560"),
        ("ipc:///a/tcp:0", 2, "ipc:///a/tcp:2"),
        ("ipc:///a/b", 0, "ipc:///a/b"),
    ],
)
def test_a_ranks_endpoint_follows_sglangs_rule(endpoint: str, rank: int, expected: str) -> None:
    assert of_rank(endpoint, rank) == expected


def test_ports_in_a_row_are_free() -> None:
    assert free_ports("127.0.0.1", 4) + 3 < 65_536
    assert free_ports("::1", 2) > 0


class Reader:
    """SGLang's reader of load figures, as the actor's process has it (srt/managers/load_snapshot.py)."""

    def __init__(self, file: Path, loads: list[Any]) -> None:
        file.touch()
        self.fd = os.open(file, os.O_RDONLY)
        self.dp_size = len(loads)
        self._loads = loads

    def _attach(self) -> bool:
        return True

    def _read_slot(self, rank: int) -> Any:
        return self._loads[rank]


def snapshot(rank: int, used: int) -> Any:
    """What a scheduler writes."""
    return SimpleNamespace(
        dp_rank=rank, num_running_reqs=3, num_waiting_reqs=1, num_used_tokens=used, max_total_num_tokens=640,
        timestamp=time.time() - 2,
    )  # fmt: skip


def engine(reader: Any, name: str | None = None) -> Any:
    """An engine with that reader, and that name for its metrics."""
    ports = SimpleNamespace(metrics_ipc_name=name) if name else None
    return SimpleNamespace(tokenizer_manager=SimpleNamespace(load_snapshot_reader=reader), port_args=ports)


def test_tokens_are_turned_into_blocks_for_each_rank(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "loads", [snapshot(0, 33), snapshot(1, 0), None])
    loads = Loads(engine(reader), 16)
    first, second = loads.read()
    assert (first.dp_rank, first.running, first.queued, first.kv_used, first.kv_total) == (0, 3, 1, 3, 40)
    assert (second.dp_rank, second.kv_used) == (1, 0)
    assert 2 <= first.age < 10


def test_a_scheduler_stopped_while_writing_does_not_stop_us(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "loads", [snapshot(0, 33)])
    loads = Loads(engine(reader), 16)
    before = loads.read()
    reader._loads = [snapshot(0, 99)]
    with (tmp_path / "loads").open() as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert loads.read() == before
    assert loads.read()[0].kv_used == 7


def test_a_version_without_load_figures_has_none() -> None:
    assert Loads(engine(None), 16).read() == []
    assert Loads(engine(SimpleNamespace(read_all=list)), 16).read() == []


class Bomb:
    """Goes off in whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (66,)


def test_pickled_metrics_neither_pile_up_nor_are_ever_read(tmp_path: Path) -> None:
    name = f"ipc://{tmp_path}/metrics"
    loads = Loads(engine(None, name), 16)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.set(zmq.SNDHWM, 0)
    push.connect(name)
    message = pickle.dumps((Bomb(), "x" * 4_000))
    grown = []
    for _ in range(8):
        for _ in range(1_000):
            push.send(message)
        time.sleep(0.1)
        loads.read()
        grown.append(procfs.rss_bytes())
    assert grown[-1] - grown[0] < 8 << 20, "32 MB were sent"
    context.destroy(linger=0)
    loads.close()
