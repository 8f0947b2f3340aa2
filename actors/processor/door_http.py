"""The door of clients on HTTP: OpenAI's chat and text completions, the list of models, and health.

Every processor of a model listens on the same port (SO_REUSEPORT), and the kernel spreads the connections.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from actors.processor import kinds, openai_form
from actors.processor.holding import Holding
from actors.processor.intake import too_large
from actors.processor.journal import Outcome, Piece
from actors.processor.refusal import RefusalError
from actors.processor.service import Service
from messages import codec
from messages.ids import check_request_id
from messages.submit import Asked as Body
from messages.submit import Chat, Completion, Done, Error

log = logging.getLogger("troupe.http")
UNTOLD: Final = (HttpProcessingError, web.RequestPayloadError, ConnectionError)
wire_log = logging.getLogger("troupe.http.wire")
wire_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], UNTOLD)))
"""aiohttp's own log, without stack traces for what was no HTTP, whose sender is answered, and for who has hung up."""

STALL_SECONDS: Final = 30.0
UNREAD_BYTES: Final = 32_768
"""Half of where the transport says stop: up to here a write never waits."""
SHUTDOWN_SECONDS: Final = 1.0
SSE: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
NAME_LENGTH: Final = 256

Form = openai_form.Chat | openai_form.Completion
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Reader:
    """A job's sink whose owner, the connection's handler, comes and takes; `streams` says whether bit by bit.

    Once there is a `flow`, what has come is given to it at once, and the owner is woken only when that says no, and at
    the end.
    """

    __slots__ = ("_streams", "_wake", "flow")

    def __init__(self, streams: bool) -> None:
        self._streams = streams
        self._wake: asyncio.Future[None] | None = None
        self.flow: Callable[[], bool] | None = None

    def accepted(self, job: Outcome) -> None:
        """Do nothing: the owner hears of it as well."""

    def grown(self, job: Outcome) -> None:
        """Let it flow, or wake the owner, if it wants to know; an owner that is awake will see for itself."""
        if not self._streams or self._wake is None or self._wake.done():
            return
        if self.flow is None or not self.flow():
            self._wake.set_result(None)

    def ended(self, job: Outcome) -> None:
        """Wake the owner."""
        self._ring()

    def left(self, job: Outcome) -> None:
        """Wake the owner: another processor has taken the request on, by NATS, so that nothing more comes here."""
        job.last = job.error(409, "another processor has taken this request on")
        self._ring()

    async def wait(self) -> None:
        """Wait until there is something to take that does not flow by itself, or the last word."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Stream(web.StreamResponse):
    """A response that sends its headers with the first chunk: one system call and one packet less."""

    _send_headers_immediately = False


class HttpDoor:
    """One processor's HTTP server; `address` is where it listens once it is open."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        self._service = service
        self._limit = service.model.limits.body_bytes
        self._holding = Holding("HTTP", service.model.limits)
        self._host = host
        self._port = port
        self._created = int(time.time())
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", lambda request: self._answer(request, "chat")),
            "/v1/completions": ("POST", lambda request: self._answer(request, "completion")),
            "/v1/embeddings": ("POST", self._embed),
            "/v1/models": ("GET", self._models),
            "/health/live": ("GET", self._live),
            "/health/ready": ("GET", self._ready),
        }
        self.address: str | None = None

    async def open(self) -> None:
        """Listen. Raises OSError if the port is taken by somebody else."""
        server = web.Server(
            self._handle, request_factory=self._request, handler_cancellation=True, access_log=None, logger=wire_log
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self._host, self._port, reuse_port=True, backlog=1_024)
        await self._site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def shut(self) -> None:
        """Take no new connections, so that the kernel gives them to the others; those there are stay."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    async def close(self) -> None:
        """Close what connections are left."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _request(
        self,
        message: object,
        payload: object,
        protocol: RequestHandler,
        writer: object,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,  # type: ignore[arg-type]
            payload,  # type: ignore[arg-type]
            protocol,
            writer,  # type: ignore[arg-type]
            task,
            asyncio.get_running_loop(),
            client_max_size=self._limit,
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        route = self._routes.get(request.path)
        try:
            kinds.check_path(self._service.model, request.path)
            if route is None:
                raise RefusalError(
                    404, f"there is no {request.path[:NAME_LENGTH]} here; there are {', '.join(self._routes)}"
                )
            method, handler = route
            if request.method != method:
                raise RefusalError(405, f"{request.path} takes {method}, not {request.method}")
            return await handler(request)
        except RefusalError as refusal:
            return self._refused(request, refusal, allow=route[0] if route is not None else None)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a request could not be handled")
            return self._refused(request, RefusalError(500, "the processor failed on this request"))

    # Completions.

    async def _answer(self, request: web.BaseRequest, kind: str) -> web.StreamResponse:
        name = named(request)
        with self._hold(request):
            body = self._service.intake.read(await self._body(request), kind, codec.JSON)
            assert isinstance(body, Chat | Completion)
            if not body.model:
                raise RefusalError(400, f"model: missing; there is {self._service.model.name!r}", param="model")
            if name and not body.id:
                body.id = as_id(name)
            reader = Reader(body.stream)
            job = await self._begin(body, reader)
        headers = {"X-Request-Id": name or job.id}
        form: Form = (openai_form.Chat if kind == "chat" else openai_form.Completion)(job, self._service.model.name)
        try:
            if body.stream:
                usage = body.stream_options is not None and body.stream_options.include_usage
                return await self._stream(request, reader, job, form, usage, headers)
            return await self._whole(request, reader, job, form, headers)
        finally:
            # It holds the job, which holds the reader: none of them is to wait for the garbage collector.
            reader.flow = None
            if not job.over:
                self._service.cancel(job.id)

    async def _embed(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer with vectors; only the door of an embedding model can, and only there it is served."""
        raise RefusalError(404, f"{self._service.model.name!r} makes no embeddings")

    def _hold(self, request: web.BaseRequest) -> AbstractContextManager[None]:
        """Count the body of a request, one of unknown length as the longest, until the statement is over."""
        length = request.content_length
        return self._holding.hold(self._limit if length is None else min(length, self._limit))

    async def _body(self, request: web.BaseRequest) -> bytes:
        if (announced := request.content_length) is not None and announced > self._limit:
            raise too_large(announced, self._limit)
        try:
            if request.content.is_eof():
                return await request.read()
            async with asyncio.timeout(STALL_SECONDS):
                return await request.read()
        except TimeoutError:
            raise RefusalError(408, f"the body did not come within {STALL_SECONDS:g} s") from None
        except web.RequestPayloadError as error:
            why = " ".join(str(error).split())[:200]
            raise RefusalError(400, f"the body cannot be read as its headers announce it: {why}") from None
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large(
                error.actual_size if hasattr(error, "actual_size") else self._limit + 1, self._limit
            ) from None

    async def _begin(self, body: Body, reader: Reader) -> Outcome:
        service = self._service
        if (known := service.reserve(body)) is not None:
            raise RefusalError(409, f"request id {known.id} is under way here", param="id")
        try:
            return service.begin(body, await service.prepare(body), reader)
        finally:
            service.release(body)

    async def _whole(
        self, request: web.BaseRequest, reader: Reader, job: Outcome, form: Form, headers: dict[str, str]
    ) -> web.StreamResponse:
        while job.last is None:
            await reader.wait()
        if isinstance(job.last, Error):
            return self._failed(job.last, headers)
        data = form.whole(_rest(job), job.last)
        response = web.Response(body=data, content_type="application/json", headers=headers)
        await response.prepare(request)
        await self._patiently(request, response.write_eof())
        return response

    async def _stream(
        self,
        request: web.BaseRequest,
        reader: Reader,
        job: Outcome,
        form: Form,
        include_usage: bool,
        headers: dict[str, str],
    ) -> web.StreamResponse:
        """Send chunks as they come; what piles up while the client does not read goes as one."""
        response: web.StreamResponse | None = None
        while True:
            piece = job.take()
            if piece is None and job.last is None:
                await reader.wait()
                continue
            last = job.last
            if response is None:
                if isinstance(last, Error) and piece is None:
                    return self._failed(last, headers)
                response = Stream(headers=SSE | headers)
                await response.prepare(request)
            data = form.chunk(piece) if piece is not None else b""
            if last is not None:
                data += b"".join([form.chunk(more) for more in _rest(job)])
                data += form.end(last, include_usage) if isinstance(last, Done) else openai_form.error_chunk(last)
                await self._write(request, response.write_eof(data), len(data))
                return response
            if data:
                await self._write(request, response.write(data), len(data))
                if reader.flow is None and request.version >= HttpVersion11:
                    reader.flow = partial(_flow, request.transport, job, form)

    async def _write(self, request: web.BaseRequest, writing: Awaitable[None], size: int) -> None:
        """Let so many bytes be written to a client; one that reads nothing for too long is cut off."""
        if request.transport is not None and request.transport.get_write_buffer_size() + size < UNREAD_BYTES:
            await writing
        else:
            await self._patiently(request, writing)

    async def _patiently(self, request: web.BaseRequest, writing: Awaitable[None]) -> None:
        """Let something be written that may have to wait for the client to read."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await writing
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError(f"the client has read nothing for {STALL_SECONDS:g} s") from None

    # The rest.

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        intake, shown = self._service.intake, self._service.view.open
        data = openai_form.model_list(self._service.model, self._created, intake.context_length, shown)
        return web.Response(body=data, content_type="application/json")

    async def _live(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"status": "live"})

    async def _ready(self, request: web.BaseRequest) -> web.StreamResponse:
        gate = self._service.view.gate
        if gate is not None and gate.open and not self._service.draining:
            return web.json_response({"status": "ready", "degraded": gate.degraded})
        missing = [f"{entry.what}: {entry.why}" for entry in gate.missing] if gate is not None else []
        status = "draining" if self._service.draining else "not ready"
        answer = web.json_response({"status": status, "missing": missing}, status=503)
        answer.headers["Retry-After"] = _seconds(self._service.model.limits.retry_after)
        return answer

    def _failed(self, last: Error, headers: dict[str, str]) -> web.Response:
        answer = web.Response(
            status=last.code, body=openai_form.error(last), content_type="application/json", headers=headers
        )
        if last.retry_after is not None:
            answer.headers["Retry-After"] = _seconds(last.retry_after)
        return answer

    def _refused(self, request: web.BaseRequest, refusal: RefusalError, allow: str | None = None) -> web.Response:
        if request.method == "POST":
            self._service.meter.refused(refusal.code)
        answer = web.Response(status=refusal.code, body=openai_form.error(refusal), content_type="application/json")
        if name := named(request):
            answer.headers["X-Request-Id"] = name
        if refusal.retry_after is not None:
            answer.headers["Retry-After"] = _seconds(refusal.retry_after)
        if refusal.code == 405 and allow is not None:
            answer.headers["Allow"] = allow
        if refusal.code in (408, 413):
            answer.force_close()
        return answer


def _flow(transport: asyncio.Transport | None, job: Outcome, form: Form) -> bool:
    """Write what has come for a stream whose headers are sent, as a chunk of HTTP/1.1, with nobody being woken for it.

    Returns False where that cannot be done now: the client is gone, or has much that it has not read.
    """
    if transport is None or transport.is_closing() or transport.get_write_buffer_size() >= UNREAD_BYTES:
        return False
    data = b"".join([form.chunk(piece) for piece in _rest(job)])
    if data:
        transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


def _rest(job: Outcome) -> list[Piece]:
    """Take all that there is to take: a piece a choice."""
    pieces = []
    while (piece := job.take()) is not None:
        pieces.append(piece)
    return pieces


def named(request: web.BaseRequest) -> str:
    """Return the client's name for a request, if it has one that a header can give back."""
    name = request.headers.get("X-Request-Id", "")[:NAME_LENGTH]
    return name if name.isascii() and name.isprintable() else ""


def _seconds(value: float) -> str:
    """Write Retry-After: whole seconds, at least one."""
    return str(max(1, round(value)))


def as_id(name: str) -> str:
    """Take the client's name for a request as its id, if it is one."""
    try:
        return check_request_id(name)
    except ValueError:
        return ""
