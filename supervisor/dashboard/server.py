"""The page's HTTP server: routes are added to it, and it sees to who may ask, the headers and the errors.

Life: `add` the routes, `open` (from then on it answers on the socket that it was given), `close`.
"""

import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from messages import codec
from supervisor.dashboard.guard import HEADERS, Guard
from supervisor.dashboard.refusal import RefusalError
from supervisor.dashboard.token import proves

log = logging.getLogger("troupe.supervisor")
wire_log = logging.getLogger("troupe.dashboard.wire")
UNTOLD: Final = (HttpProcessingError, ConnectionError)
wire_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], UNTOLD)))
"""aiohttp's own log, without stack traces for what was no HTTP, whose sender is answered, and for who has hung up."""

SHUTDOWN_SECONDS: Final = 0.5
BODY_BYTES: Final = 4_096
JSON: Final = "application/json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One HTTP server on a socket that listens already; `secret` is the token that routes may ask for."""

    def __init__(self, listener: socket.socket, host: str, names: list[str], secret: str) -> None:
        self._listener = listener
        self._guard = Guard(host, names)
        self._secret = secret
        self._app = web.Application(middlewares=[self._answer], client_max_size=BODY_BYTES, logger=wire_log)
        self._app.on_response_prepare.append(_put_headers)
        self._runner: web.AppRunner | None = None

    def add(self, method: str, path: str, handler: Handler, *, token: bool = False) -> None:
        """Add a route; with `token` it is an action or tells secrets: it needs the token and the same origin."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            self._guard.check_origin(request)
            self.check_token(request)
            return await handler(request)

        self._app.router.add_route(method, path, guarded if token else handler)

    def check_token(self, request: web.Request) -> None:
        """Refuse who has not the token, with 401. Raises RefusalError."""
        if not proves(self._secret, request.headers.get("Authorization", "")):
            if "Authorization" in request.headers:
                log.warning("the page's server was asked for %s with a wrong token", request.path[:200])
            raise RefusalError(401, "this needs the token that `troupe status` shows, as `Authorization: Bearer TOKEN`")

    async def open(self) -> None:
        """Begin to answer."""
        self._runner = web.AppRunner(
            self._app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
        )
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()

    async def close(self) -> None:
        """Answer no more, and let go of the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._listener.close()

    @staticmethod
    def json(value: Any, status: int = 200) -> web.Response:
        """Answer with a value as JSON."""
        return web.Response(
            body=codec.to_json(value), status=status, content_type=JSON, headers={"Cache-Control": "no-store"}
        )

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._guard.check_host(request)
            return await handler(request)
        except RefusalError as refusal:
            answer = self.json({"error": str(refusal)}, refusal.status)
            if refusal.status == 401:
                answer.headers["WWW-Authenticate"] = 'Bearer realm="troupe"'
            return answer
        except web.HTTPException as error:
            if error.status < 400:
                raise
            said = f"there is no {request.path[:200]} here" if error.status == 404 else error.reason
            answer = self.json({"error": said}, error.status)
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer
        except ConnectionError:
            raise
        except Exception:
            log.exception("the page's server failed on %s", request.path[:200])
            return self.json({"error": "the supervisor failed on this request; its log says more"}, 500)


async def _put_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
