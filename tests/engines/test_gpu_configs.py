"""The configurations for GPUs that come with Troupe: who gets which GPU, and that SGLang's own parser takes them."""

import json
import subprocess
import sys

import pytest

from messages.config import read, slots_of
from supervisor.gpus import Card, fraction
from supervisor.spec import ENGINE_ROLES, Spec, check_files, specs_of
from tests.harness import ROOT

TOTAL = 150_000_000_000
H200 = [Card(index=at, name="NVIDIA H200", total=TOTAL) for at in range(4)]
GIVEN: dict[str, dict[str, tuple[tuple[int, ...], float | None]]] = {
    "h200-aggregated": {"qwen3-decode-0": ((0,), None)},
    "h200-1p1d": {"qwen3-prefill-0": ((0,), 0.3), "qwen3-decode-0": ((0,), 0.5)},
    "h200-1p1d-two-gpus": {"qwen3-prefill-0": ((0,), None), "qwen3-decode-0": ((1,), None)},
    "h200-2p2d": {
        "qwen3-prefill-0": ((0,), None),
        "qwen3-prefill-1": ((1,), None),
        "qwen3-decode-0": ((2,), None),
        "qwen3-decode-1": ((3,), None),
    },
    "h200-hicache": {"qwen3-decode-0": ((0,), None)},
    "gpt-oss-20b": {"gpt-oss-prefill-0": ((0,), 0.3), "gpt-oss-decode-0": ((0,), 0.5)},
    "gpt-oss-120b": {"gpt-oss-prefill-0": ((0,), None), "gpt-oss-decode-0": ((1,), None)},
}


def engines(name: str) -> dict[str, Spec]:
    cluster = read(ROOT / "configs" / f"{name}.yaml")
    specs = specs_of(cluster, has_gpu=True, cards=H200)
    return {slot: specs[slot] for slot, (_, named) in slots_of(cluster).items() if named.role in ENGINE_ROLES}


@pytest.mark.parametrize("name", GIVEN)
def test_every_engine_has_its_gpus_and_its_share(name: str) -> None:
    check_files(read(ROOT / "configs" / f"{name}.yaml"))
    found = engines(name)
    assert {slot: (spec.gpus, spec.share) for slot, spec in found.items()} == GIVEN[name]
    for spec in found.values():
        assert (spec.device, spec.spawn) == ("cuda", "prefork")
        assert spec.env["CUDA_VISIBLE_DEVICES"] == ",".join(map(str, spec.gpus))


def test_every_configuration_for_gpus_is_here() -> None:
    there = {path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem.startswith(("h200", "gpt-oss"))}
    assert there == GIVEN.keys()


def shares(name: str) -> dict[str, tuple[int, float | None]]:
    """What each engine is told: how many GPUs, and what fraction of what its neighbours before it have left."""
    free = dict.fromkeys(range(4), TOTAL)
    told: dict[str, tuple[int, float | None]] = {}
    for slot, spec in engines(name).items():
        told[slot] = len(spec.gpus), spec.share and fraction(spec.share, TOTAL, free[spec.gpus[0]])
        free[spec.gpus[0]] -= round((spec.share or 0.0) * TOTAL)
    return told


@pytest.mark.sglang
@pytest.mark.timeout(180)
def test_sglangs_own_parser_takes_their_arguments() -> None:
    lines = [
        json.dumps({"config": str(ROOT / "configs" / f"{name}.yaml"), "slots": shares(name)}) + "\n" for name in GIVEN
    ]
    command = [sys.executable, "-m", "tests.engines.server_args"]
    done = subprocess.run(command, input="".join(lines), capture_output=True, text=True, timeout=170, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.keys() == {f"{name} {slot}" for name, slots in GIVEN.items() for slot in slots}
    for who, one in said.items():
        assert one["read"] == one["asked"], who
        made = one["read"]
        assert (made["attention_backend"], made["sampling_backend"]) == ("triton", "pytorch")
        assert made["enable_metrics"] is True
        assert json.loads(made["kv_events_config"])["publisher"] == "zmq"
        assert made["page_size"] == (64 if "gpt-oss" in who or "hicache" in who else 16)
        side = who.split()[1].split("-")[-2]
        apart = "prefill-0" in "".join(GIVEN[who.split()[0]])
        assert made.get("disaggregation_mode") == (side if apart else None)
        assert made.get("disaggregation_transfer_backend") == ("nixl" if apart else None)
        assert (made.get("disaggregation_bootstrap_port") is not None) == (apart and side == "prefill")
    assert said["h200-1p1d qwen3-prefill-0"]["read"]["mem_fraction_static"] == 0.3
    assert said["h200-1p1d qwen3-decode-0"]["read"]["mem_fraction_static"] == pytest.approx(0.7143)
    assert "mem_fraction_static" not in said["h200-aggregated qwen3-decode-0"]["read"]
    assert said["h200-hicache qwen3-decode-0"]["read"]["hicache_size"] == 64
