"""What is never logged, at no level: prompts, passwords, tokens. And levels that change while things run."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import NatsServer
from tests.supervisor.cluster import Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

PROMPT = "xylophone quagmire 73910"
PASSWORD = "s3cret-of-nats"
TOKEN = "sk-caller-8812-token"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that logs all it can, on a NATS that wants a password, given in the URL and apart."""
    server = NatsServer(tmp_path / "jetstream", "--user", "me", "--pass", PASSWORD)
    server.start()
    configuration = simulated(decode={"count": 2})
    url = server.url.replace("//", f"//me:{PASSWORD}@")
    configuration |= {"nats": {"url": url, "user": "me", "password": PASSWORD}, "logs": {"level": "debug"}}
    configuration["models"][0]["simulated"] = {"itl": 0.05}
    made = Cluster(tmp_path, configuration)
    try:
        made.up()
        yield made
    finally:
        made.close()
        server.stop()


async def over_http(url: str) -> None:
    """Ask well, ask badly, and be there while an engine dies."""
    body = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        for more, code in (({}, 200), ({"temperature": PROMPT}, 400), ({"response_format": {"type": PROMPT}}, 400)):
            async with session.post(f"{url}/v1/chat/completions", json=body | more) as answer:
                assert answer.status == code, await answer.text()
        async with session.post(f"{url}/v1/chat/completions", data=json.dumps(body)[:-3]) as answer:
            assert answer.status == 400


def test_no_log_of_any_process_has_a_prompt_a_password_or_a_token(cluster: Cluster) -> None:
    found = cluster.status()
    assert PASSWORD not in cluster.command("status").stdout
    asyncio.run(over_http(found.http["demo"].removesuffix("/v1")))
    for options in (["--max-tokens", "30"], ["--temperature", "-3"]):
        cluster.command("submit", PROMPT, *options)
    asking = asyncio.run(_dying(cluster, found.http["demo"].removesuffix("/v1")))
    assert asking == 200
    slot = "demo-decode-0"
    done = cluster.command("log-level", slot, "warning")
    assert done.stdout.strip().endswith("logs from warning on")
    assert cluster.command("log-level", "supervisor", "debug").stdout == "the supervisor logs from debug on\n"
    cluster.command("restart", slot, "--wait", "20")
    raw, shown = cluster.command("logs", slot, "--raw").stdout, cluster.command("logs", slot).stdout
    line = json.loads(raw.splitlines()[-1])
    assert (line["slot"], line["generation"]) == (slot, cluster.slot(slot).generation)
    assert f"INFO    {slot}#{line['generation']} {line['text']}" in shown
    lines = [json.loads(line) for line in (cluster.state.root / "supervisor.log").read_text().splitlines()]
    assert any(line.get("slot") == slot and line["who"] == "supervisor" for line in lines)
    secrets = [PROMPT, PROMPT.split()[0], PASSWORD, TOKEN]
    if (token := cluster.state.root / "dashboard.token").exists():
        secrets.append(token.read_text().strip())
    logs = [path for path in cluster.state.root.rglob("*") if path.is_file() and ".json" not in path.name]
    logs = [path for path in logs if "log" in path.name]
    assert {path.name for path in logs} >= {"log", "log.1", "supervisor.log"}
    said = {str(path): path.read_text(errors="replace") for path in logs} | {"troupe up": cluster.log.text}
    assert any('"level":"debug"' in text for text in said.values()), "what is logged at debug level was looked at"
    for name, text in said.items():
        for secret in secrets:
            assert secret not in text, f"{secret!r} stands in {name}"


async def _dying(cluster: Cluster, url: str) -> int:
    """Ask, and kill the engine that answers; return what became of the request."""
    body = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 60}
    async with aiohttp.ClientSession() as session:
        asked = asyncio.ensure_future(session.post(f"{url}/v1/chat/completions", json=body))
        busy = ""
        async with asyncio.timeout(10):
            while not busy:
                slots = (await asyncio.to_thread(cluster.status)).slots
                busy = next((slot.slot for slot in slots if slot.role == "decode" and slot.in_flight), "")
        await asyncio.to_thread(cluster.kill, busy)
        async with asyncio.timeout(20), await asked as answer:
            return answer.status
