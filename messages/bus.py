"""The one way onto NATS: a connection with settings that suit us, requests with named errors, watches made anew.

nats-py's defaults notice a dead link after minutes and give up after 60 attempts. Here a dead link is noticed
within three seconds, reconnecting never ends, buffers are bounded, and what is dropped is counted and told.
"""

import asyncio
import contextlib
import logging
import math
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import nats
import nats.errors
import nats.js.errors
import nats.micro
from nats.aio.client import Client as Nc
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, KeyValueConfig, StreamConfig, StreamInfo
from nats.js.kv import KeyValue

from messages.bucket import Bucket, stop_now
from messages.config import Nats, shown, wrong_url
from messages.connection import AtOnce, Connection
from messages.errors import BusError, NobodyThereError, ServiceError, SilentError, TakenError, error_headers

log = logging.getLogger("troupe.bus")

PING_SECONDS: Final = 1
PINGS_OUTSTANDING: Final = 2
PENDING_BYTES: Final = 16 << 20
RECONNECT_SECONDS: Final = 0.1
QUEUE: Final = "q"
CANCELS: Final = 50
CLOSE_SECONDS: Final = 2.0
VERSION: Final = "0.1.0"
EVENT_DAYS: Final = 7
EVENT_LIMIT: Final = 100_000

Callback = Callable[[Msg], Awaitable[None]]


class Bus:
    """A connection to NATS.

    `on_lost` and `on_back` are called when the connection breaks and when it is there again (subscriptions are already
    replayed then). `reconnects` and `dropped` count what happened; `down_since` is monotonic, None while connected.
    """

    def __init__(self, nc: Connection, urls: list[str]) -> None:
        self._nc = nc
        self.urls = urls
        self.reconnects = 0
        self.dropped = 0
        self.down_since: float | None = None
        self.closed = asyncio.Event()
        self._lost: list[Callable[[], None]] = []
        self._back: list[Callable[[], None]] = []
        self._watchers: set[KeyValue.KeyWatcher] = set()
        self._js: JetStreamContext | None = None
        self._closing = False
        self._last_error = ""
        self._refusal = ""
        self._told_at = 0.0

    @classmethod
    async def connect(cls, config: Nats, *, name: str, wait: float = 30.0) -> "Bus":
        """Connect, waiting up to `wait` seconds for a server to be there and saying what is waited for.

        Raises BusError with the last thing that went wrong.
        """
        urls = config.urls
        if not urls:
            raise BusError("no NATS URL: the configuration has none and none was given with --nats")
        if (why := wrong_url(urls)) is not None:
            raise BusError(f"not a NATS URL: {why}")
        nc = Connection()
        bus = cls(nc, urls)
        options: dict[str, Any] = {
            "servers": urls,
            "name": name,
            "error_cb": bus._on_error,
            "disconnected_cb": bus._on_disconnected,
            "reconnected_cb": bus._on_reconnected,
            "closed_cb": bus._on_closed,
            "connect_timeout": 2,
            "reconnect_time_wait": RECONNECT_SECONDS,
            "max_reconnect_attempts": -1,
            "ping_interval": PING_SECONDS,
            "max_outstanding_pings": PINGS_OUTSTANDING,
            "pending_size": PENDING_BYTES,
            "flush_timeout": 5,
            "drain_timeout": 5,
        }
        if config.user is not None:
            options |= {"user": config.user, "password": await asyncio.to_thread(_password, config)}
        if config.credentials is not None:
            await asyncio.to_thread(_check_credentials, config.credentials)
            options["user_credentials"] = config.credentials
        if config.tls is not None:
            options["tls"] = _tls(config)
        try:
            await _within(nc.connect(**options), wait)
        except TimeoutError:
            bus._closing = True
            await _give_up(nc)
            why = bus._refusal or bus._last_error or "no answer"
            raise BusError(f"no NATS server at {shown(urls)} within {wait:g} s: {why}") from None
        except ImportError as error:
            await _give_up(nc)
            raise BusError(
                f"nats.credentials needs a package that is not installed ({error}): pip install 'troupe[credentials]'"
            ) from None
        except (OSError, nats.errors.Error, ValueError) as error:
            await _give_up(nc)
            raise BusError(f"cannot connect to NATS at {shown(urls)}: {error or type(error).__name__}") from None
        return bus

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, in bytes."""
        return int(self._nc.max_payload)

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return self._nc.is_connected

    def on_lost(self, call: Callable[[], None]) -> None:
        """Call back whenever the connection breaks."""
        self._lost.append(call)

    def on_back(self, call: Callable[[], None]) -> None:
        """Call back whenever the connection is there again."""
        self._back.append(call)

    def inbox(self) -> str:
        """Make a subject of our own for answers."""
        return self._nc.new_inbox()

    async def publish(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish; while disconnected into a bounded buffer.

        Raises BusError when the buffer is full, ServiceError 413 when the message is too large.
        """
        try:
            await self._nc.publish(subject, payload, reply=reply, headers=headers)
        except nats.errors.OutboundBufferLimitError:
            raise BusError(f"NATS is away and the buffer of {PENDING_BYTES} bytes is full") from None
        except nats.errors.MaxPayloadError:
            raise self._too_large(payload) from None
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError):
            raise BusError("the connection to NATS is closed") from None
        except nats.errors.BadSubjectError:
            raise BusError(f"{(reply or subject)[:256]!r} is no subject") from None

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Ask and wait for the one answer.

        Raises NobodyThereError at once when no one is subscribed, SilentError after `timeout` seconds,
        ServiceError for an error answer, BusError when there is no connection.
        """
        try:
            answer = await self._nc.request(subject, payload, timeout=timeout, headers=headers)
        except nats.errors.NoRespondersError:
            raise NobodyThereError(f"nobody listens on {subject}") from None
        except nats.errors.TimeoutError:
            raise SilentError(f"no answer on {subject} within {timeout:g} s") from None
        except nats.errors.MaxPayloadError:
            raise self._too_large(payload) from None
        except nats.errors.Error as error:
            raise BusError(f"cannot ask {subject}: {error or type(error).__name__}") from None
        if answer.headers and (code := answer.headers.get("Nats-Service-Error-Code")):
            raise ServiceError(int(code), answer.headers.get("Nats-Service-Error", ""))
        return answer

    async def subscribe(
        self, subject: str, call: Callback, *, queue: str = "", pending: int = 65_536, pending_bytes: int = 256 << 20
    ) -> Subscription:
        """Subscribe; the callback gets one message at a time, so it hands off and returns."""
        return await self._nc.subscribe(
            subject, queue=queue, cb=call, pending_msgs_limit=pending, pending_bytes_limit=pending_bytes
        )

    async def take_at_once(self, subject: str, call: AtOnce) -> None:
        """Subscribe, for as long as the connection lives, to what comes so often that each microsecond counts.

        It is given to `call` as it is read from the socket, with no queue and no task between.
        """

        async def queued(msg: Msg) -> None:
            call(msg.subject, msg.data, msg.headers)

        subscription = await self._nc.subscribe(subject, cb=queued)
        self._nc.at_once[subscription._id] = call

    def after_reading(self, call: Callable[[], None]) -> None:
        """Call back whenever all that was read from the socket at once has been handed on."""
        self._nc.after_reading.append(call)

    async def finish(self, subscription: Subscription) -> None:
        """Take nothing new on a subscription and wait until what is there has been handled."""
        with contextlib.suppress(nats.errors.Error):
            await subscription.drain()  # type: ignore[no-untyped-call]

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until the server has taken in all that was sent; raises BusError if it does not answer in time."""
        try:
            await self._nc.flush(timeout=math.ceil(timeout))
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"NATS did not answer a ping: {error or type(error).__name__}") from None

    async def require_jetstream(self) -> None:
        """Raise BusError with a plain sentence if the server has no JetStream."""
        try:
            await self._jetstream().account_info()
        except (nats.js.errors.ServiceUnavailableError, nats.errors.NoRespondersError):
            raise BusError(
                f"the NATS server at {shown(self.urls)} has no JetStream; start it with -js "
                "(or leave nats.url out to use the embedded server)"
            ) from None
        except nats.js.errors.APIError as error:
            raise BusError(f"JetStream at {shown(self.urls)} is not usable: {error.description}") from None
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"JetStream at {shown(self.urls)} does not answer: {type(error).__name__}") from None

    async def bucket(self, name: str) -> Bucket:
        """Open a key-value bucket, making it if it is not there."""
        js = self._jetstream()
        try:
            try:
                return Bucket(await js.key_value(name), self._watchers)
            except nats.js.errors.BucketNotFoundError:
                return Bucket(await js.create_key_value(KeyValueConfig(bucket=name, history=1)), self._watchers)
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"cannot open the bucket {name}: {error or type(error).__name__}") from None

    async def ensure_stream(self, name: str, subjects: list[str]) -> None:
        """Make the stream that keeps events, if it is not there; the oldest go after a week or a hundred thousand."""
        config = StreamConfig(name=name, subjects=subjects, max_age=EVENT_DAYS * 86_400, max_msgs=EVENT_LIMIT)
        try:
            await self._jetstream().add_stream(config)
        except nats.js.errors.BadRequestError:
            return
        except (nats.errors.Error, TimeoutError) as error:
            raise BusError(f"cannot make the stream {name}: {error or type(error).__name__}") from None

    async def stream_info(self, name: str) -> StreamInfo:
        """Say what is in a stream; raises BusError."""
        with self._asking(f"the stream {name} cannot be read"):
            return await self._jetstream().stream_info(name)

    async def add_consumer(self, stream: str, config: ConsumerConfig) -> int:
        """Make a consumer of a stream; return how many messages were there for it to tell. Raises BusError."""
        with self._asking(f"the stream {stream} cannot be followed"):
            info = await self._jetstream().add_consumer(stream, config=config)
        told = info.delivered.consumer_seq if info.delivered is not None else 0
        return (info.num_pending or 0) + told

    async def announce(self, name: str, metadata: dict[str, str]) -> None:
        """Answer `$SRV.PING`, `INFO` and `STATS` (ADR-32), so that the stock `nats` tool can list us."""
        await nats.micro.add_service(self._nc, name=name, version=VERSION, metadata=metadata)

    async def close(self) -> None:
        """Send what is buffered and close; never waits longer than a few seconds."""
        self._closing = True
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            if self._nc.is_connected:
                await self._nc.flush(timeout=2)
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            await self._nc.close()

    def _too_large(self, payload: bytes) -> ServiceError:
        return ServiceError(413, f"{len(payload)} bytes are more than the {self.max_payload} that NATS takes")

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise BusError(f"{what}: {error or type(error).__name__}") from None

    def _jetstream(self) -> JetStreamContext:
        if self._js is None:
            self._js = self._nc.jetstream(timeout=5)
        return self._js

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            self.dropped += 1
        self._last_error = str(error) or type(error).__name__
        if "authorization" in self._last_error.lower():
            # It tells more than the reset that a refused connection often ends in.
            self._refusal = self._last_error
        now = time.monotonic()
        if now - self._told_at >= 5:
            self._told_at = now
            waiting = "" if self._nc.is_connected else f"waiting for NATS at {shown(self.urls)}: "
            log.warning("%s%s", waiting, self._last_error)

    async def _on_disconnected(self) -> None:
        if self._closing:
            return
        if self.down_since is None:
            self.down_since = time.monotonic()
            log.warning("connection to NATS lost")
        for call in self._lost:
            call()

    async def _on_reconnected(self) -> None:
        self.down_since = None
        self.reconnects += 1
        log.info(
            "connected to NATS again at %s", shown([self._nc.connected_url.netloc]) if self._nc.connected_url else "?"
        )
        for watcher in list(self._watchers):
            self._watchers.discard(watcher)
            stop_now(watcher)
        for call in self._back:
            call()

    async def _on_closed(self) -> None:
        self.closed.set()


async def _within(work: Coroutine[Any, Any, None], seconds: float) -> None:
    """Await `work` for so long at most. Raises TimeoutError.

    nats-py swallows a cancellation that comes while it tries one server after the other, and tries on: a plain
    time-out, or the end of the caller, would wait for it for ever. So it is a task of its own, cancelled until it ends.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError
        task.result()
    finally:
        for _ in range(CANCELS):
            if task.done():
                break
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)


async def _give_up(nc: Nc) -> None:
    with contextlib.suppress(Exception):
        await _within(nc.close(), CLOSE_SECONDS)


def _password(config: Nats) -> str:
    """The password, read anew from its file at each connection. Raises BusError."""
    if config.password_file is None:
        return config.password or ""
    try:
        lines = Path(config.password_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BusError(f"nats.password_file: {config.password_file} cannot be read: {error}") from None
    if not lines or not lines[0]:
        raise BusError(f"nats.password_file: {config.password_file} is empty; its first line is to be the password")
    return lines[0]


def _check_credentials(path: str) -> None:
    """Raise BusError for a file that nats-py would search for its parts for ever."""
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise BusError(f"nats.credentials: {path}: {error.strerror}") from None
    for part in ("NATS USER JWT", "USER NKEY SEED"):
        if not re.search(rf"-+BEGIN {part}-+\s+\S+\s+-+END {part}-+", text):
            raise BusError(
                f"nats.credentials: {path}: no {part} in it; it must be a file as `nsc generate creds` makes"
            )


def _tls(config: Nats) -> ssl.SSLContext:
    assert config.tls is not None
    try:
        context = ssl.create_default_context(cafile=config.tls.ca)
        if config.tls.cert:
            context.load_cert_chain(config.tls.cert, config.tls.key)
    except OSError as error:
        raise BusError(f"nats.tls: {error}") from None
    return context


__all__ = [
    "Bucket",
    "Bus",
    "BusError",
    "NobodyThereError",
    "ServiceError",
    "SilentError",
    "TakenError",
    "error_headers",
]
