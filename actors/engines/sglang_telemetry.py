"""SGLang's inner life: the arguments that make it tell of it, and the load figures that it keeps in shared memory.

No pickle is read. SGLang's scheduler pushes its `KvMetrics` pickled (sglang 0.5.23,
srt/managers/scheduler_components/kv_events_publisher.py) into a socket without a bound; a socket of ours takes them,
keeps the last one and never reads it, so that nothing piles up. The same figures, and fresher ones, stand in a file
in shared memory that only our user can open, as msgpack (srt/managers/load_snapshot.py): those are what we read.
"""

import contextlib
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

import zmq

from actors.engines.engine import ConfigurationError
from actors.engines.places import Places, of_rank, tcp
from messages.lifecycle import KvSource, RankLoad

log = logging.getLogger("troupe.sglang")

WILDCARDS: Final = ("tcp://*:", "tcp://0.0.0.0:")


def telemetry_arguments(asked: dict[str, Any], places: Places | None, known: Iterable[str]) -> dict[str, Any]:
    """Make the arguments for KV events and metrics; what `asked` says of either counts more.

    Raises ConfigurationError for a `kv_events_config` that cannot be used.
    """
    if places is None or "kv_events_config" not in (names := set(known)):
        return {}
    config: dict[str, Any] = {"publisher": "zmq", "endpoint": places.endpoint, "replay_endpoint": places.replay}
    config |= _kv_config(asked.get("kv_events_config"))
    endpoint = str(config["endpoint"])
    if endpoint.startswith("tcp://") and not endpoint.startswith(WILDCARDS):
        if endpoint.startswith("tcp://["):
            raise ConfigurationError(
                f"KV events at {endpoint}: SGLang's socket takes no IPv6 address; give an IPv4 one"
            )
        if not _can_bind():
            raise ConfigurationError(
                f"KV events at {endpoint}: this SGLang cannot bind them to one address; set `publisher.events: nats`, "
                "or give it args.kv_events_config with an endpoint such as tcp://*:5557"
            )
        config.setdefault("bind", True)
    made = {"kv_events_config": json.dumps(config)}
    if "enable_metrics" in names and not _plain_dp(asked):
        made["enable_metrics"] = asked.get("enable_metrics", True)
    return made


def sources_of(merged: dict[str, Any], places: Places | None, advertise: str, dp_ranks: int) -> list[KvSource]:
    """List where the engine publishes its KV events; none if it does not."""
    config = _kv_config(merged.get("kv_events_config"))
    if places is None or config.get("publisher") != "zmq":
        return []
    endpoint, replay = (_reachable(config.get(name) or "", advertise) for name in ("endpoint", "replay_endpoint"))
    return [
        KvSource(dp_rank=rank, endpoint=of_rank(endpoint, rank), replay=of_rank(replay, rank) if replay else "")
        for rank in range(dp_ranks)
    ]


def use_metrics_folder(folder: str) -> None:
    """Have prometheus_client write to files there, also where it has been imported already, as in a forked actor."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values: Any = sys.modules.get("prometheus_client.values")
    if values is not None:
        values.ValueClass = values.get_value_class()


def _kv_config(written: Any) -> dict[str, Any]:
    """Read `kv_events_config` as people write it: SGLang's JSON, or the same as a mapping."""
    if written is None:
        return {}
    if isinstance(written, str):
        try:
            written = json.loads(written)
        except ValueError as error:
            raise ConfigurationError(f"args.kv_events_config: not JSON: {error}") from None
    if not isinstance(written, dict):
        raise ConfigurationError("args.kv_events_config: a mapping is wanted, such as {endpoint: 'tcp://*:5557'}")
    return written


def _can_bind() -> bool:
    """Whether this SGLang knows `bind`; without it a PUB socket connects to an address that is no wildcard."""
    from sglang.srt.disaggregation.kv_events import KVEventsConfig

    return "bind" in KVEventsConfig.model_fields


def _plain_dp(asked: dict[str, Any]) -> bool:
    """Whether each DP rank pushes its metrics to a name of its own that nobody can learn: there they would pile up."""
    plain = int(asked.get("dp_size") or 1) > 1 and not asked.get("enable_dp_attention")
    if plain and "enable_metrics" not in asked:
        log.warning("enable_metrics is off: with several DP ranks SGLang's schedulers would never get rid of them")
    return plain


def _reachable(endpoint: str, advertise: str) -> str:
    """Put the advertised address where an endpoint is bound to all."""
    for wildcard in WILDCARDS:
        if endpoint.startswith(wildcard):
            return tcp(advertise, int(endpoint.removeprefix(wildcard)))
    return endpoint


class Loads:
    """The load figures of one running engine."""

    def __init__(self, engine: Any, block_size: int) -> None:
        self._reader = getattr(engine.tokenizer_manager, "load_snapshot_reader", None)
        self._block_size = block_size
        self._last: list[RankLoad] = []
        self._sink: zmq.Socket[bytes] | None = None
        if (name := getattr(getattr(engine, "port_args", None), "metrics_ipc_name", None)) is not None:
            self._take(str(name))

    def _take(self, name: str) -> None:
        """Bind what the scheduler pushes its pickled metrics to: the last one is kept, none is ever read."""
        self._sink = zmq.Context.instance().socket(zmq.PULL)
        self._sink.setsockopt(zmq.CONFLATE, 1)
        self._sink.setsockopt(zmq.LINGER, 0)
        try:
            self._sink.bind(name)
        except zmq.ZMQError as error:
            log.warning("SGLang's KvMetrics will pile up in its scheduler: %s cannot be bound: %s", name, error)

    def read(self) -> list[RankLoad]:
        """Return the figures of every DP rank; the last known ones where a scheduler is just writing, or stopped so.

        Empty for a version of SGLang that keeps none.
        """
        reader = self._reader
        try:
            if reader is None or not reader._attach():
                return []
            # Not by `read_all`: it waits for the lock, which a scheduler that was stopped while writing never gives up.
            fcntl.flock(reader.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._last
        except (AttributeError, OSError) as error:
            log.warning("this SGLang's load figures cannot be read: %s", error)
            self._reader = None
            return []
        try:
            found = [reader._read_slot(rank) for rank in range(reader.dp_size)]
        finally:
            fcntl.flock(reader.fd, fcntl.LOCK_UN)
        now = time.time()
        self._last = [self._in_blocks(load, now) for load in found if load is not None]
        return self._last

    def _in_blocks(self, load: Any, now: float) -> RankLoad:
        return RankLoad(
            dp_rank=int(load.dp_rank),
            running=int(load.num_running_reqs),
            queued=int(load.num_waiting_reqs),
            kv_used=-(-int(load.num_used_tokens) // self._block_size),
            kv_total=int(load.max_total_num_tokens) // self._block_size,
            age=round(max(0.0, now - load.timestamp), 3) if load.timestamp else 0.0,
        )

    def close(self) -> None:
        """Let go of the socket."""
        if self._sink is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._sink.close()
