"""How NATS is reached, as people write it: passwords in files, URLs, and what external slots need."""

from asyncio import to_thread
from pathlib import Path

import msgspec
import pytest

from messages import config
from messages.bus import Bus, BusError
from messages.config import ConfigError, Nats
from tests.conftest import NatsServer

BODY = """
models:
  - name: demo
    engine: simulated
    tokenizer: ./tokenizer
    {model}
    cast:
      processor: {{}}
      decode: {{{decode}}}
"""


def parse(folder: Path, nats: str = "", *, model: str = "", decode: str = "") -> config.Cluster:
    text = (f"nats: {{{nats}}}\n" if nats else "") + BODY.format(model=model, decode=decode)
    return config.parse(text.encode(), folder)


def refused(folder: Path, nats: str = "", **more: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(folder, nats, **more)
    return str(error.value)


async def test_a_password_can_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush-hush\n")
    server = NatsServer(tmp_path / "jetstream", "--user", "troupe", "--pass", "hush-hush")
    await to_thread(server.start)
    try:
        url = f'url: "{server.url}", user: troupe, password_file: secret'
        nats = (await to_thread(parse, tmp_path, url)).nats
        bus = await Bus.connect(nats, name="test", wait=5)
        await bus.flush()
        await bus.close()
        (tmp_path / "secret").write_text("wrong")
        with pytest.raises(BusError, match="Authorization Violation"):
            await Bus.connect(nats, name="test", wait=1)
        (tmp_path / "secret").write_text("\n")
        with pytest.raises(BusError, match="secret is empty; its first line is to be the password"):
            await Bus.connect(nats, name="test", wait=1)
        (tmp_path / "secret").unlink()
        with pytest.raises(BusError, match=r"secret cannot be read: \[Errno 2\]"):
            await Bus.connect(nats, name="test", wait=1)
    finally:
        await to_thread(server.stop)


def test_what_makes_no_sense_of_a_password_file_is_refused(tmp_path: Path) -> None:
    assert "no `user`" in refused(tmp_path, "url: nats://x, password_file: file")
    assert "give one of the two" in refused(tmp_path, "url: nats://x, user: u, password: p, password_file: file")


WRONG = ["ws://127.0.0.1:1", "http://there"]


@pytest.mark.parametrize("url", WRONG)
def test_a_url_that_is_not_for_us_is_refused(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, f'url: "{url}"')
    assert f"nats.url: '{url}' begins with {url.partition(':')[0]}://; nats:// and tls:// can be used" in said


@pytest.mark.parametrize("url", WRONG)
async def test_nobody_waits_for_a_server_at_such_a_url(url: str) -> None:
    with pytest.raises(BusError, match="not a NATS URL: .* can be used"):
        await Bus.connect(Nats(url=url), name="test", wait=0.01)


@pytest.mark.parametrize("url", ["nats://there:4222", "tls://there", "there:4222"])
def test_the_others_are_taken(tmp_path: Path, url: str) -> None:
    assert parse(tmp_path, f'url: "{url}"').nats.urls == [url]


def test_an_external_slot_needs_a_nats_of_its_own_and_no_gpus_of_ours(tmp_path: Path) -> None:
    said = refused(tmp_path, decode="spawn: external")
    assert said.startswith("nats.url: missing; demo-decode-0 is started by another manager")
    said = refused(tmp_path, "url: nats://x", decode="spawn: external, gpus: [[0]]")
    assert "models[0].cast.decode.gpus: the manager that starts these slots" in said


def test_who_starts_a_slot_is_said_for_all_of_a_model_or_for_one_role(tmp_path: Path) -> None:
    [model] = parse(tmp_path, "url: nats://x", model="spawn: external", decode="spawn: plain").models
    assert (model.spawn_of("processor"), model.spawn_of("decode")) == ("external", "plain")
    assert msgspec.structs.replace(model, spawn="auto").spawn_of("processor") == "auto"
