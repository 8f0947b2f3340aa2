"""The bus as its users meet it: waiting for a server, errors with names, watches that survive a restart."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from messages.bus import (
    Bus,
    BusError,
    NobodyThereError,
    ServiceError,
    SilentError,
    TakenError,
    error_headers,
)
from messages.config import Nats, Tls
from messages.connection import Connection
from tests.conftest import NatsServer, eventually
from tests.messages.credentials import operator

pytestmark = pytest.mark.nats


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    server.port = free_port()
    connecting = asyncio.ensure_future(Bus.connect(Nats(url=server.url), name="early", wait=10))
    await asyncio.sleep(0)
    await asyncio.to_thread(server.start)
    try:
        bus = await connecting
        await bus.require_jetstream()
        await bus.close()
    finally:
        server.stop()


async def test_a_server_that_never_comes_is_named_with_the_reason() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    with pytest.raises(BusError, match=f"no NATS server at {url} within 0.5 s: .*[Cc]onnect"):
        await Bus.connect(Nats(url=url), name="hopeless", wait=0.5)


async def test_a_server_without_jetstream_is_told_plainly(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, jetstream=False)
    server.start()
    try:
        bus = await Bus.connect(Nats(url=server.url), name="plain", wait=5)
        with pytest.raises(BusError, match="has no JetStream; start it with -js"):
            await bus.require_jetstream()
        await bus.close()
    finally:
        server.stop()


async def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, "--user", "me", "--pass", "secret")
    server.start()
    try:
        with pytest.raises(BusError, match="[Aa]uthorization"):
            await Bus.connect(Nats(url=server.url, user="me", password="wrong"), name="thief", wait=1.5)
        bus = await Bus.connect(Nats(url=server.url, user="me", password="secret"), name="me", wait=5)
        await bus.close()
    finally:
        server.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for loopback that is its own authority, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    making += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(making, check=True, capture_output=True)
    return cert, key


async def test_tls_by_an_authority_of_our_own(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = NatsServer(tmp_path, "--tls", "--tlscert", str(cert), "--tlskey", str(key))
    server.start()
    try:
        bus = await Bus.connect(Nats(url=server.url, tls=Tls(ca=str(cert))), name="safe", wait=5)
        await bus.require_jetstream()
        await bus.close()
        with pytest.raises(BusError, match="certificate verify failed"):
            await Bus.connect(Nats(url=server.url, tls=Tls()), name="wary", wait=1.5)
    finally:
        server.stop()


async def test_of_several_servers_the_one_that_is_there_serves(nats_server: NatsServer) -> None:
    urls = [f"nats://127.0.0.1:{free_port()}", nats_server.url]
    bus = await Bus.connect(Nats(url=urls), name="choosy", wait=5)
    await bus.require_jetstream()
    await bus.close()


async def test_a_credentials_file_opens_the_door_and_another_operator_s_does_not(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    config, credentials = operator(tmp_path)
    _, foreign = operator(tmp_path / "others")
    server = NatsServer(tmp_path, "-c", str(config))
    server.start()
    try:
        bus = await Bus.connect(Nats(url=server.url, credentials=str(credentials)), name="me", wait=5)
        await bus.require_jetstream()
        await bus.close()
        for refused in (Nats(url=server.url), Nats(url=server.url, credentials=str(foreign))):
            with pytest.raises(BusError, match="[Aa]uthorization"):
                await Bus.connect(refused, name="thief", wait=1.5)
    finally:
        server.stop()


@pytest.mark.parametrize("text", ["", "no credentials at all\n", "-----BEGIN NATS USER JWT-----\n"])
async def test_a_file_that_holds_no_credentials_is_named(tmp_path: Path, nats_server: NatsServer, text: str) -> None:
    path = tmp_path / "me.creds"
    path.write_text(text)
    with pytest.raises(BusError, match=r"me\.creds"):
        await Bus.connect(Nats(url=nats_server.url, credentials=str(path)), name="me", wait=2)
    with pytest.raises(BusError, match=r"other\.creds.*No such file"):
        await Bus.connect(Nats(url=nats_server.url, credentials=str(tmp_path / "other.creds")), name="me", wait=2)


async def test_credentials_without_the_package_for_them_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    operator(tmp_path)
    with pytest.raises(BusError, match=r"pip install 'troupe\[credentials\]'"):
        await Bus.connect(Nats(url="nats://127.0.0.1:4", credentials=str(tmp_path / "me.creds")), name="me", wait=2)


async def test_requests_fail_by_name(bus: Bus) -> None:
    async def refuse(msg: Msg) -> None:
        await bus.publish(msg.reply, headers=error_headers(429, "full:\n8 requests"))

    async def ignore(msg: Msg) -> None:
        return

    await bus.subscribe("refuses", refuse)
    await bus.subscribe("ignores", ignore)
    began = time.monotonic()
    with pytest.raises(NobodyThereError):
        await bus.request("nobody", timeout=5)
    assert time.monotonic() - began < 2, "nobody there is told at once, not after the time-out"
    with pytest.raises(ServiceError) as refused:
        await bus.request("refuses", timeout=5)
    assert (refused.value.code, refused.value.message) == (429, "full: 8 requests")
    with pytest.raises(SilentError):
        await bus.request("ignores", timeout=0.05)


async def test_a_message_that_does_not_fit_is_refused_with_both_numbers(bus: Bus) -> None:
    size = bus.max_payload + 1
    with pytest.raises(ServiceError) as refused:
        await bus.publish("anything", b"x" * size)
    assert refused.value.code == 413
    assert str(size) in refused.value.message and str(bus.max_payload) in refused.value.message


async def test_compare_and_set(bus: Bus) -> None:
    bucket = await bus.bucket("things")
    first = await bucket.create("key", b"1")
    with pytest.raises(TakenError):
        await bucket.create("key", b"2")
    await bucket.update("key", b"2", first)
    with pytest.raises(TakenError):
        await bucket.update("key", b"3", first)
    with pytest.raises(TakenError):
        await bucket.delete("key", first)
    assert await bucket.all() == {"key": b"2"}
    await bucket.delete("key")
    assert await bucket.get("key") is None
    await bucket.create("key", b"again")


async def test_an_end_that_overtakes_the_entries_is_not_taken_for_emptiness(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Seen in two of sixty restarts of the server: the client hears "nothing is pending" before what has been sent.
    bucket = await bus.bucket("things")
    await bucket.put("stays", b"1")
    await bucket.put("goes", b"1")
    await bucket.delete("goes")
    watch = bucket._kv.watch

    async def overtaken(keys: str, **more: Any) -> KeyValue.KeyWatcher:
        watcher = await watch(keys, **more)
        watcher._updates._queue.appendleft(None)  # type: ignore[attr-defined]
        return watcher

    monkeypatch.setattr(bucket._kv, "watch", overtaken)
    assert await bucket.all() == {"stays": b"1"}
    assert await (await bus.bucket("nothing")).all() == {}


async def test_a_watch_is_made_anew_after_a_restart_and_sees_what_changed_meanwhile(
    bus: Bus, nats_server: NatsServer
) -> None:
    bucket = await bus.bucket("things")
    await bucket.put("stays", b"1")
    await bucket.put("goes", b"1")
    seen: asyncio.Queue[object] = asyncio.Queue()
    keeping = asyncio.ensure_future(bucket.keep(">", seen.put_nowait, lambda *change: seen.put_nowait(change)))
    async with asyncio.timeout(15):
        assert await seen.get() == {"stays": b"1", "goes": b"1"}
        await bucket.put("stays", b"2")
        assert await seen.get() == ("stays", b"2")
        await bucket.delete("goes")
        assert await seen.get() == ("goes", None)
        nats_server.stop()
        nats_server.start()
        assert await seen.get() == {"stays": b"2"}
        await bucket.put("new", b"3")
        assert await seen.get() == ("new", b"3")
    assert bus.reconnects == 1
    keeping.cancel()
    await asyncio.wait({keeping})


async def test_a_flush_waits_for_all_that_was_published_before_it(nats_server: NatsServer) -> None:
    connection = Connection()
    await connection.connect(nats_server.url)
    try:
        for _ in range(20):
            heard = await connection.subscribe("t.flushed")
            await connection.publish("t.flushed", b"x")
            await connection.flush(timeout=5)
            assert heard.pending_msgs == 1, "the server had it before it answered the ping"
            await heard.unsubscribe()
    finally:
        await connection.close()


async def test_a_cancelled_flush_leaves_the_connection_well(bus: Bus) -> None:
    for _ in range(20):
        flushing = asyncio.ensure_future(bus.flush())
        await asyncio.sleep(0)
        flushing.cancel()
    await bus.flush()
    assert bus.connected and bus.reconnects == 0


async def test_what_a_server_cannot_take_now_it_gets_later_in_order(nats_server: NatsServer, bus: Bus) -> None:
    """A server that is stopped for a moment leaves megabytes in the socket, in its buffer and with us."""
    assert nats_server.process is not None
    heard: list[int] = []
    bus_of_others = await Bus.connect(Nats(url=nats_server.url), name="others", wait=5)
    await bus_of_others.take_at_once("t.big", lambda subject, data, headers: heard.append(int(data[:8])))
    await bus_of_others.flush()
    nats_server.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(200):
            await bus.publish("t.big", b"%08d" % number + bytes(65_536))
            await asyncio.sleep(0)
    finally:
        nats_server.process.send_signal(signal.SIGCONT)
    await bus.flush()
    await bus_of_others.flush()
    assert heard == list(range(200))
    assert bus.reconnects == 0
    await bus_of_others.close()


async def test_what_is_taken_at_once_comes_with_its_headers_and_a_failure_of_the_taker_harms_nothing(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, bytes, dict[str, str] | None]] = []

    def take(subject: str, data: bytes, headers: dict[str, str] | None) -> None:
        heard.append((subject, data, headers))
        if data == b"bad":
            raise RuntimeError("not to be taken")

    await bus.take_at_once("t.now.*", take)
    await bus.publish("t.now.a", b"1")
    await bus.publish("t.now.b", b"bad")
    await bus.publish("t.now.c", b"2", headers={"kind": "x"})
    await bus.publish("t.nobody", b"", reply="t.now.d")
    await bus.flush()
    await eventually(lambda: len(heard) == 4)
    assert heard[:3] == [("t.now.a", b"1", None), ("t.now.b", b"bad", None), ("t.now.c", b"2", {"kind": "x"})]
    assert heard[3][0] == "t.now.d" and (heard[3][2] or {}).get("Status") == "503"
    assert "a message on t.now.b could not be handled" in caplog.text
    assert bus.connected and bus.reconnects == 0
