"""`troupe restart --model` as its user sees it: a whole cast made anew under load, and every way in which it stops."""

import signal
import subprocess
from asyncio import to_thread
from collections.abc import Iterator

import pytest

from tests.cluster.stage import loaded
from tests.supervisor.cluster import ROOT, TROUPE, Cluster, simulated

pytestmark = [pytest.mark.nats, pytest.mark.timeout(120)]

PROMPTS = ["one", "two words", "and a third prompt"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two of what clients talk to and of what generates, and the only one of what computes prompts."""
    cluster = Cluster(tmp_path_factory.mktemp("rolling"), simulated(processor={"count": 2}, decode={"count": 2}))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.close()


async def test_a_whole_cast_is_restarted_under_load_and_no_request_fails(cluster: Cluster) -> None:
    before, line = await to_thread(cluster.records), len(cluster.log.lines)
    async with loaded(cluster, PROMPTS, tokens=60, nats=4, http=2, limit=60) as load:
        done = await to_thread(cluster.command, "restart", "--model", "demo", seconds=100)
        await load.until_answered(6, 60)
    assert done.returncode == 0, done.stdout + done.stderr
    order = ["demo-prefill-0", "demo-decode-0", "demo-decode-1", "demo-processor-0", "demo-processor-1"]
    told = done.stdout.splitlines()
    assert told[0] == f"rolling restart of demo, one after the other: {', '.join(order)}"
    assert told[1:3] == ["1/5 demo-prefill-0#1 drains, and is started again", "1/5 demo-prefill-0#2 is back"]
    assert told[-1] == "done: 5 of 5"
    after = await to_thread(cluster.records)
    assert {slot: generation for slot, (_, generation) in after.items()} == {
        slot: generation + 1 for slot, (_, generation) in before.items()
    }
    said = cluster.log.lines[line:]
    turns = [
        (slot, next(at for at, text in enumerate(said) if f"{slot}#{number} {what}" in text))
        for slot in order
        for number, what in ((1, "drains"), (2, "ready after"))
    ]
    assert [at for _, at in turns] == sorted(at for _, at in turns), "two were away at once"
    assert not [text for text in said if " died" in text]
    assert {(slot.restarts, slot.reason, slot.planned) for slot in (await to_thread(cluster.status)).slots} == {
        (1, "restart asked for", True)
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "other"], "there is no model 'other' here; there is demo"),
        (["--model", "demo", "--role", "encoder"], "demo has no 'encoder'; it has processor, prefill, decode"),
        (["demo-decode-0", "--model", "demo"], "either demo-decode-0, or --model"),
        ([], "what is to be restarted?"),
    ],
)
def test_what_is_not_there_is_told_with_what_there_is(cluster: Cluster, arguments: list[str], says: str) -> None:
    done = cluster.command("restart", *arguments)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_it_goes_on_without_its_command_until_somebody_says_stop(cluster: Cluster) -> None:
    line = len(cluster.log.lines)
    generations = {slot: generation for slot, (_, generation) in cluster.records().items()}
    command = [*TROUPE, "restart", "--role", "decode", "--state", str(cluster.state.root)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as asked:
        assert asked.stdout is not None
        while not asked.stdout.readline().startswith("1/2 "):
            assert asked.poll() is None, "ended before its first slot"
        asked.send_signal(signal.SIGINT)
        output, _ = asked.communicate(timeout=20)
    assert asked.returncode == 130
    assert "it goes on without this command" in output
    cluster.log.until("rolling restart of demo's decode slots done: 2 of 2", 30, after=line)
    begun = cluster.command("restart", "--model", "demo", "--wait", "0")
    assert begun.returncode == 0, begun.stderr
    assert cluster.command("restart", "--model", "demo").returncode == 7
    assert cluster.command("restart", "--model", "demo", "--stop").returncode == 0
    assert cluster.command("restart", "--stop").returncode == 7
    cluster.log.until("demo-prefill-0#.* ready after", after=line)
    assert cluster.command("status", "--wait-ready", "20").returncode == 0
    after = {slot: generation for slot, (_, generation) in cluster.records().items()}
    changed = {slot for slot, generation in after.items() if generation != generations[slot]}
    assert changed == {"demo-decode-0", "demo-decode-1", "demo-prefill-0"}
    assert "restart" not in cluster.command("status").stdout.split("SLOT")[0]


def test_it_stops_at_one_that_does_not_come_back(cluster: Cluster) -> None:
    text, line = cluster.config.read_text(), len(cluster.log.lines)
    cluster.config.write_text(text.replace("tokenizer", "tokeniser"))
    try:
        done = cluster.command("restart", "--role", "decode", seconds=60)
    finally:
        cluster.config.write_text(text)
    assert done.returncode == 5
    assert "stopped after 0 of 2: demo-decode-0 did not come back" in done.stdout
    assert "tokeniser: unknown; did you mean 'tokenizer'?" in done.stdout
    assert not [said for said in cluster.log.lines[line:] if "demo-decode-1" in said and " drains" in said]
    assert cluster.command("restart", "--role", "decode", seconds=60).returncode == 0
