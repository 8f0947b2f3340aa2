"""Who may ask the page's server for what: the token, the origin, the host's name, the headers, the errors."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from supervisor.dashboard import token
from supervisor.dashboard.refusal import RefusalError
from supervisor.dashboard.server import Server
from supervisor.dashboard.static_files import StaticFiles

SECRET = "a-very-secret-token-of-ours"
BEARER = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
async def url() -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = Server(listener, "127.0.0.1", ["troupe.example"], SECRET)
    files = StaticFiles()
    await asyncio.to_thread(files.read)

    async def act(request: web.Request) -> web.StreamResponse:
        return Server.json({"done": True})

    async def refuse(request: web.Request) -> web.StreamResponse:
        raise RefusalError(409, "not now")

    async def fail(request: web.Request) -> web.StreamResponse:
        raise ValueError("a secret of the inside")

    server.add("GET", "/", files.serve)
    server.add("GET", "/static/{name:.+}", files.serve)
    server.add("POST", "/api/act", act, token=True)
    server.add("GET", "/api/refuse", refuse)
    server.add("GET", "/api/fail", fail)
    await server.open()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    await server.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {SECRET}"}, 401),
        (BEARER, 200),
        (BEARER | {"Origin": "http://evil.example"}, 403),
        (BEARER | {"Origin": "null"}, 403),
        (BEARER | {"Sec-Fetch-Site": "cross-site"}, 403),
        (BEARER | {"Sec-Fetch-Site": "same-site"}, 403),
        (BEARER | {"Sec-Fetch-Site": "same-origin", "Origin": "OWN"}, 200),
    ],
)
async def test_an_action_needs_the_token_and_our_own_page(url: str, headers: dict[str, str], status: int) -> None:
    sent = {name: url if value == "OWN" else value for name, value in headers.items()}
    async with aiohttp.ClientSession() as client, client.post(f"{url}/api/act", headers=sent) as response:
        assert response.status == status
        told = await response.json()
        assert told == {"done": True} if status == 200 else SECRET not in told["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:PORT", 421),
        ("", 421),
        ("127.0.0.1.evil.example:PORT", 421),
        ("localhost:PORT", 200),
        ("127.0.0.1:PORT", 200),
        ("[::1]:PORT", 200),
        ("10.1.2.3:PORT", 200),
        ("troupe.example", 200),
    ],
)
async def test_a_name_that_is_not_ours_is_refused(url: str, host: str, status: int) -> None:
    asked = host.replace("PORT", url.rpartition(":")[2])
    async with aiohttp.ClientSession() as client, client.get(url, headers={"Host": asked}) as response:
        assert response.status == status


async def test_every_answer_has_the_headers_that_keep_a_browser_safe(url: str) -> None:
    async with aiohttp.ClientSession() as client:
        for path, status in (
            ("/", 200),
            ("/static/main.js", 200),
            ("/api/refuse", 409),
            ("/nothing", 404),
            ("/api/fail", 500),
        ):
            async with client.get(url + path) as response:
                assert response.status == status
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                text = await response.text()
                assert "secret of the inside" not in text
                assert "Traceback" not in text


async def test_the_page_loads_nothing_from_elsewhere_and_has_nothing_inline(url: str) -> None:
    async with aiohttp.ClientSession() as client:
        async with client.get(url) as response:
            page = await response.text()
            tag = response.headers["ETag"]
        assert "http://" not in page
        assert "https://" not in page
        assert " style=" not in page
        assert " onclick=" not in page
        assert SECRET not in page
        async with client.get(url, headers={"If-None-Match": tag}) as response:
            assert response.status == 304
        for path in ("/static/../token.py", "/static/%2e%2e/token.py", "/static/nothing.js"):
            async with client.get(url + path) as response:
                assert response.status == 404


async def test_what_is_wrong_is_said(url: str) -> None:
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{url}/api/refuse") as response:
            assert await response.json() == {"error": "not now"}
        async with client.get(f"{url}/api/act") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
        async with client.get(f"{url}/<script>alert(1)</script>") as response:
            assert response.content_type == "application/json"


def test_the_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "dashboard.token"
    made = token.have(path)
    assert len(made) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.have(path) == made == token.read(path)
    path.write_text("short\n")
    assert token.have(path) not in (made, "short")
    assert token.read(tmp_path / "none") == ""
