"""GPUs belong to slots: checked against what is there, shared only where asked for, free again before a restart."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages.config import ConfigError, Nats, parse
from messages.lifecycle import State
from supervisor import gpus, nvml, report
from supervisor.acts import Clear, Cleared, Exited, Forget, Gone, Seen, Start, Started
from supervisor.deaths import CLEAR_SECONDS
from supervisor.events import Bus, Tick
from supervisor.gpus import Card, Given, Want, assign
from supervisor.lives import Phase
from supervisor.restart import next_wake
from supervisor.roster import Roster
from supervisor.spec import Spec, specs_of
from supervisor.state import ClusterRecord
from supervisor.world import World
from tests.supervisor.cluster import TINY, Cluster, simulated
from tests.supervisor.histories import D0, D1, P0, Played, spec

FOUR = [Card(index=at, total=100 << 30) for at in range(4)]


def on(gpu: int, slot: str) -> Spec:
    import msgspec

    return msgspec.structs.replace(spec(slot), gpus=(gpu,))


# Who gets which.


def test_slots_that_name_none_get_the_first_that_are_free() -> None:
    wants = [Want(slot="a", count=2), Want(slot="b", gpus=(1,)), Want(slot="c")]
    given = assign(wants, FOUR)
    assert {slot: one.gpus for slot, one in given.items()} == {"a": (0, 2), "b": (1,), "c": (3,)}
    assert all(one.share is None for one in given.values())


def test_those_that_share_leave_the_others_alone_and_spread() -> None:
    wants = [Want(slot="a", shares=True), Want(slot="b"), Want(slot="c", shares=True), Want(slot="d", shares=True)]
    given = assign(wants, FOUR[:3])
    assert given["b"] == Given(gpus=(0,))
    assert [given[slot].gpus for slot in "acd"] == [(1,), (2,), (1,)]
    assert given["c"].share is None
    assert given["a"].share == given["d"].share == pytest.approx(gpus.SHARED / 2)


def test_what_some_ask_for_is_taken_from_what_the_others_get() -> None:
    wants = [Want(slot=slot, gpus=(0,), shares=True, share=share) for slot, share in (("a", 0.5), ("b", None))]
    assert assign(wants, FOUR)["a"].share == 0.5
    assert assign(wants, FOUR)["b"].share == pytest.approx(gpus.SHARED - 0.5)
    wants.append(Want(slot="c", gpus=(0,), shares=True, measured=True))
    assert assign(wants, FOUR)["c"].share is None


@pytest.mark.parametrize(
    ("wants", "cards", "message"),
    [
        ([Want(slot="a", gpus=(5,))], FOUR, "GPU 5 is given to a, and is not there; this machine has 0 to 3"),
        ([Want(slot="a", gpus=(1, 1))], FOUR, "GPU 1 is given to a twice"),
        ([Want(slot="a", gpus=(0,)), Want(slot="b", gpus=(0,))], None, "GPU 0 is given to a and to b; .*share_gpus"),
        ([Want(slot="a", gpus=(0,), shares=True), Want(slot="b", gpus=(0,))], None, "GPU 0 is given to a and to b"),
        ([Want(slot="a"), Want(slot="b")], FOUR[:1], r"b needs a GPU and none of 1 is left \(0: a\); .*share_gpus"),
        ([Want(slot="a", count=8)], FOUR, "a needs 8 GPUs and 4 of 4 are left"),
        ([Want(slot="a", gpus=(3,))], FOUR, "CUDA_VISIBLE_DEVICES leaves us 0, 1, 2 only"),
        ([Want(slot=s, gpus=(0,), shares=True, share=0.5) for s in "ab"], FOUR, "a and b ask for 1 of one GPU"),
        (
            [Want(slot=s, gpus=(0,), shares=True, share=x) for s, x in (("a", 0.79), ("b", None))],
            FOUR,
            "the others on its GPU leave b none",
        ),
    ],
)
def test_what_cannot_be_given_is_refused(wants: list[Want], cards: list[Card] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(wants, cards, frozenset({0, 1, 2}) if "leaves us" in message else None)


def test_where_nobody_knows_what_is_there_names_are_believed() -> None:
    assert assign([Want(slot="a", gpus=(9,)), Want(slot="b")], None) == {"a": Given(gpus=(9,)), "b": Given()}


def test_a_share_is_the_same_at_every_start() -> None:
    assert gpus.fraction(0.4, 100, 100) == pytest.approx(0.4)
    assert gpus.fraction(0.4, 100, 50) == pytest.approx(0.8)
    assert gpus.fraction(0.4, 100, 20) == gpus.FRACTION_MOST
    assert gpus.fraction(0.4, 0, 0) == 0.4


def test_what_must_be_free_before_a_restart() -> None:
    gib = 1 << 30
    assert gpus.wanted(None, 100 * gib, 90 * gib) == 90 * gib - gpus.SLACK
    assert gpus.wanted(None, 100 * gib, None) == 80 * gib - gpus.SLACK
    assert gpus.wanted(0.4, 100 * gib, 95 * gib) == 40 * gib - gpus.SLACK
    assert gpus.wanted(0.4, 100 * gib, 30 * gib) == 30 * gib - gpus.SLACK


SGLANG = """
models:
  - {name: demo, path: /models/demo, device: cuda, cast: {processor: {}, prefill: {PREFILL}, decode: {DECODE}}}
"""


def made(prefill: str, decode: str, cards: list[Card] | None = FOUR) -> dict[str, Spec]:
    text = SGLANG.replace("{PREFILL}", f"{{{prefill}}}").replace("{DECODE}", f"{{{decode}}}")
    return specs_of(parse(text.encode(), Path("/")), has_gpu=True, cards=cards)


def test_engines_on_cuda_get_a_gpu_each_and_see_no_other() -> None:
    specs = made("", "args: {tp_size: 2}")
    assert specs[P0].gpus == (0,)
    assert specs[D0].gpus == (1, 2)
    assert specs[D0].env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2"}
    assert specs["demo-processor-0"].gpus == ()


def test_two_engines_on_one_gpu_must_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="demo-decode-0 needs a GPU and none of 1 is left"):
        made("", "", FOUR[:1])
    specs = made("share_gpus: true", "share_gpus: true, memory_share: 0.5", FOUR[:1])
    assert (specs[P0].gpus, specs[D0].gpus) == ((0,), (0,))
    assert specs[P0].share == pytest.approx(0.3)
    assert specs[D0].share == 0.5


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        ("gpus: [[0, 1]], args: {tp_size: 4}", "demo-decode-0: its arguments .* take 4 GPUs, and `gpus` gives it 2"),
        ("args: {tp_size: two}", "demo-decode-0: args.tp_size: 'two' is no number of GPUs"),
    ],
)
def test_tensor_parallelism_and_gpus_must_agree(decode: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made("", decode)


def test_arguments_count_gpus() -> None:
    assert gpus.needed({}) is None
    assert gpus.needed({"tp_size": 2, "pp_size": 2}) == 4
    assert gpus.needed({"tp_size": 4, "dp_size": 2}) == 8
    assert gpus.needed({"tp_size": 4, "dp_size": 2, "enable_dp_attention": True}) == 4


# Whose turn it is.


def stage_of(played: Played, slot: str) -> str:
    """What `troupe status` says that a slot is at."""
    world = World(lives=played.lives, roster=Roster(entries={}), doors={})
    record = ClusterRecord(cluster="troupe", config="", nats=Nats(), embedded=True)
    said = report.of_world(world, {}, record, played.now)
    return {status.slot: status.stage for status in said.slots}[slot]


def test_two_that_share_a_gpu_load_one_after_the_other() -> None:
    played = Played(on(0, P0), on(0, D0), on(1, D1))
    assert played.at(0, Bus(up=True)) == [Start(P0), Start(D1)]
    assert "demo-prefill-0 loads" in played.notes("waits")[0].text
    assert stage_of(played, D0) == "GPU: after demo-prefill-0"
    played.at(0, Started(P0, 1), Started(D1, 1))
    assert played.at(5, Tick()) == []
    assert next_wake(played.lives) > 5
    assert played.at(6, Seen(P0, 1, State.READY)) == [Start(D0)]
    assert len(played.notes("waits")) == 1


def test_the_next_one_starts_when_the_first_has_failed() -> None:
    played = Played(on(0, P0), on(0, D0))
    played.at(0, Bus(up=True), Started(P0, 1))
    assert played.at(1, Gone(P0, 1)) == [Forget(P0, 1)]
    assert played.at(1, Exited(P0, 1, None, "killed")) == [Forget(P0, 1), Clear(P0, 1)]
    assert played.at(3, Tick()) == []
    assert played.at(3.5, Cleared(P0, 1)) == [Start(D0)]
    assert "demo-decode-0 has waited for longer" in played.notes("waits")[-1].text
    assert played.at(4, Started(D0, 1)) == []
    assert played.at(5, Seen(D0, 1, State.READY)) == [Start(P0)]


def test_a_slot_is_not_started_again_before_its_memory_is_free() -> None:
    played = Played(on(0, D0))
    played.at(0, Bus(up=True), Started(D0, 1), Seen(D0, 1, State.READY))
    assert played.at(20, Gone(D0, 1), Exited(D0, 1, None, "killed")) == [Forget(D0, 1), Forget(D0, 1), Clear(D0, 1)]
    assert played.at(25, Tick()) == []
    assert stage_of(played, D0) == "GPU: memory"
    assert played.at(26, Cleared(D0, 0)) == []
    assert played.at(27, Cleared(D0, 1, "GPU 0 has 3.0 GiB free; held by pid 7")) == [Start(D0)]
    assert "held by pid 7" in played.notes("held")[0].text


def test_nobody_waits_for_ever_for_memory() -> None:
    played = Played(on(0, D0))
    played.at(0, Bus(up=True), Started(D0, 1), Seen(D0, 1, State.READY))
    played.at(20, Exited(D0, 1, None, "killed"))
    assert next_wake(played.lives) == 20 + CLEAR_SECONDS
    assert played.at(20 + CLEAR_SECONDS, Tick()) == [Start(D0)]


def test_a_slot_without_gpus_waits_for_nothing() -> None:
    played = Played(spec(P0), spec(D0))
    assert played.at(0, Bus(up=True)) == [Start(P0), Start(D0)]
    played.at(0, Started(D0, 1), Seen(D0, 1, State.READY))
    assert played.at(20, Exited(D0, 1, None, "killed")) == [Forget(D0, 1), Start(D0)]


def test_the_end_waits_for_no_memory() -> None:
    from supervisor.acts import End

    played = Played(on(0, D0))
    played.at(0, Bus(up=True), Started(D0, 1), Seen(D0, 1, State.READY))
    played.at(5, End(abort=True))
    assert Clear(D0, 1) not in played.at(6, Exited(D0, 1, 0, "ended"))
    assert played.life(D0).phase is Phase.STOPPED


# What the machine says.

PYNVML = """
from types import SimpleNamespace as Said
import os

def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return b"NVIDIA H200"
def nvmlDeviceGetMemoryInfo(handle): return Said(total=150 << 30, free=(20 + handle) << 30)
def nvmlDeviceGetPciInfo(handle): return Said(busId=b"0000ffff:0%d:00.0" % handle)
def nvmlDeviceGetComputeRunningProcesses(handle): return [Said(pid=os.getpid(), usedGpuMemory=130 << 30)]
"""

SMI = f"""#!{sys.executable}
import sys, pathlib
free = (pathlib.Path(__file__).parent / "free").read_text()
query = sys.argv[1]
if "compute-apps" in query:
    print("1, 70000")
elif "memory.free" in query:
    print(free)
else:
    print("0, 100000, 00000000:FF:00.0, NVIDIA H200, the first")
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for nvidia-smi: one card of 100,000 MiB, of which the file `free` says how much is free."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "free").write_text("99000")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    # On a machine with a GPU its own library would be asked first.
    (folder / "pynvml.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    yield folder / "free"


def test_nvml_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: Path) -> None:
    (tmp_path / "pynvml.py").write_text(PYNVML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml")
    asked = nvml.find()
    assert isinstance(asked, nvml.Nvml)
    assert [(card.index, card.name, card.total >> 30) for card in asked.cards()] == [
        (0, "NVIDIA H200", 150),
        (1, "NVIDIA H200", 150),
    ]
    assert asked.free(1) == 21 << 30
    said = asyncio.run(nvml.cleared(asked, {0: 20 << 30, 1: 100 << 30}, lambda: False, seconds=0.1))
    assert said.startswith(f"GPU 1 has 21.0 GiB free where 100.0 are wanted; held by pid {os.getpid()} (")
    assert said.endswith(", 130.0 GiB)")
    assert asyncio.run(nvml.cleared(asked, {0: 20 << 30}, lambda: False, seconds=0.1)) == ""
    sys.modules.pop("pynvml")


def test_without_it_nvidia_smi_is(smi: Path) -> None:
    asked = nvml.find()
    assert isinstance(asked, nvml.Smi)
    assert asked.cards() == [Card(index=0, name="NVIDIA H200, the first", total=100_000 << 20)]
    assert asked.free(0) == 99_000 << 20
    assert asked.holders(0) == [nvml.Holder(pid=1, held=70_000 << 20)]


def test_cpus_near_a_gpu_are_told_by_the_kernel(tmp_path: Path) -> None:
    device = tmp_path / "0000:1a:00.0"
    device.mkdir()
    (device / "local_cpulist").write_text("0-3,8\n")
    (device / "numa_node").write_text("1\n")
    assert nvml.near_cpus("00000000:1A:00.0", tmp_path) == {0, 1, 2, 3, 8}
    (device / "numa_node").write_text("-1\n")
    assert nvml.near_cpus("00000000:1A:00.0", tmp_path) == frozenset()
    assert nvml.near_cpus("00000000:1B:00.0", tmp_path) == frozenset()


def test_a_process_is_bound_to_cpus() -> None:
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one CPU leaves nothing to choose")
    one = frozenset({min(mine)})
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert nvml.bind(child.pid, one | {100_000}) == one
        assert os.sched_getaffinity(child.pid) == one
        assert nvml.bind(child.pid, frozenset({100_000})) == frozenset()
        assert nvml.bind(child.pid, frozenset(mine)) == frozenset()
    finally:
        child.communicate(b"\n")


# All of it, with real processes and a machine that is said to have one GPU.


@pytest.fixture
def sharing(tmp_path: Path, smi: Path) -> Iterator[Cluster]:
    """Prefill and decode of the simulated engine that own one GPU together."""
    part = {"gpus": [[0]], "share_gpus": True}
    configuration = simulated(prefill=part, decode=part | {"memory_share": 0.3})
    configuration["models"][0]["simulated"] = {"load": 0.5}
    made = Cluster(tmp_path, configuration)
    yield made
    made.close()


@pytest.mark.nats
@pytest.mark.timeout(60)
def test_neighbours_load_in_turn_and_memory_is_waited_for(sharing: Cluster, smi: Path) -> None:
    up = sharing.up()
    waits = up.until("demo-decode-0.* waits for its turn on the GPU it shares: demo-prefill-0 loads")
    ready = up.until("demo-prefill-0#1 ready", after=waits)
    up.until("demo-decode-0#1 started", after=ready)
    command = " ".join(sharing.record("demo-decode-0").argv)
    # 0.3 of all is 0.303 of what is free: SGLang counts from there.
    assert "--gpus 0 --memory-fraction 0.3030" in command
    assert sharing.slot("demo-decode-0").gpus == [0]

    smi.write_text("1000")
    sharing.kill("demo-decode-0", signal.SIGKILL)
    died = up.until("demo-decode-0#1 died")
    held = up.until("demo-decode-0#1 memory of its last life is not free: GPU 0 has 1.0 GiB free where", 30, after=died)
    assert "held by pid 1 (" in up.lines[held]
    assert not any("demo-decode-0#2 started" in line for line in up.lines[died:held])
    up.until("demo-decode-0#2 ready", after=held)


@pytest.mark.nats
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, smi: Path) -> None:
    text = textwrap.dedent(f"""
        models:
          - name: demo
            engine: simulated
            tokenizer: {TINY}
            cast: {{processor: {{}}, decode: {{gpus: [[3]]}}}}
    """)
    cluster = Cluster(tmp_path, text)
    assert cluster.up(ready=False).ended() == 3
    assert "GPU 3 is given to demo-decode-0, and is not there; this machine has 0 alone" in cluster.log.text
    cluster.close()
