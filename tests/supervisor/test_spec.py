"""Child specs made of a configuration, and what is refused before anything starts."""

from pathlib import Path

import pytest

from messages.config import ConfigError, parse, read
from supervisor.spec import check_files, specs_of

ROOT = Path(__file__).resolve().parents[2]
SGLANG = b"""
models:
  - name: Qwen/Demo
    path: /models/demo
    load_deadline: 100
    env: {A: model, B: model}
    cast:
      processor: {count: 1}
      prefill: {count: 2, gpus: [[0], [1, 2]], env: {A: part}}
      decode: {count: 1, spawn: plain, restart: {period: 7}}
"""


def written(text: bytes, old: bytes = b"", new: bytes = b"") -> bytes:
    assert old in text
    return text.replace(old, new)


def test_specs_stand_in_starting_order_with_nothing_left_open() -> None:
    specs = specs_of(parse(b"publisher: {enabled: true, name: host}\n" + SGLANG, ROOT), has_gpu=True)
    assert list(specs) == [
        "Qwen_Demo-prefill-0",
        "Qwen_Demo-prefill-1",
        "Qwen_Demo-decode-0",
        "Qwen_Demo-processor-0",
        "host-publisher-0",
    ]
    prefill, decode = specs["Qwen_Demo-prefill-1"], specs["Qwen_Demo-decode-0"]
    assert prefill.env == {"A": "part", "B": "model", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2"}
    assert (prefill.spawn, decode.spawn, specs["Qwen_Demo-processor-0"].spawn) == ("prefork", "plain", "plain")
    assert (prefill.policy.period, decode.policy.period) == (300, 7)
    assert prefill.device == "cuda"
    assert specs["Qwen_Demo-processor-0"].tier < prefill.tier < decode.tier < specs["host-publisher-0"].tier
    assert (specs["host-publisher-0"].model, specs["host-publisher-0"].spawn) == ("", "plain")


def test_an_engine_that_can_give_back_its_memory_is_started_as_a_fresh_process() -> None:
    text = written(SGLANG, b"env: {A: part}}", b"args: {enable_memory_saver: true}}")
    specs = specs_of(parse(text, ROOT), has_gpu=True)
    assert specs["Qwen_Demo-prefill-1"].spawn == "plain"
    asked = written(text, b"    load_deadline: 100", b"    load_deadline: 100\n    spawn: prefork")
    assert specs_of(parse(asked, ROOT), has_gpu=True)["Qwen_Demo-prefill-1"].spawn == "prefork"


@pytest.mark.parametrize(
    "path",
    sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "drills.yaml"}),
    ids=lambda path: path.name,
)
def test_every_configuration_that_comes_with_troupe_is_well(path: Path) -> None:
    cluster = read(path)
    check_files(cluster)
    roles = {spec.role for spec in specs_of(cluster, has_gpu=False).values()}
    assert "processor" in roles
    assert roles & {"decode", "encoder"}


def test_a_gpu_belongs_to_one_slot() -> None:
    with pytest.raises(ConfigError, match="GPU 1 is given to Qwen_Demo-prefill-0 and to Qwen_Demo-prefill-1"):
        specs_of(parse(written(SGLANG, b"[[0], [1, 2]]", b"[[1], [1, 2]]"), ROOT), has_gpu=False)


def test_two_models_cannot_share_a_port_by_accident() -> None:
    second = SGLANG.replace(b"models:\n", b"").replace(b"Qwen/Demo", b"other").replace(b"gpus: [[0], [1, 2]], ", b"")
    with pytest.raises(ConfigError, match=r"models\[1\].*port: 8000 is the port of 'Qwen/Demo' already"):
        specs_of(parse(SGLANG + second, ROOT), has_gpu=False)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("{tmp}/none", r"models\[0\].path: there is no folder .*/none"),
        ("{tmp}", r"models\[0\].path: .* holds no readable config.json, so it is no model folder"),
        ("{tmp}/file", r"models\[0\].path: .*/file is a file; the model's folder is wanted"),
    ],
)
def test_a_model_that_is_not_there_is_said_before_anything_starts(tmp_path: Path, path: str, says: str) -> None:
    (tmp_path / "file").touch()
    cluster = parse(written(SGLANG, b"/models/demo", path.format(tmp=tmp_path).encode()), ROOT)
    with pytest.raises(ConfigError, match=says):
        check_files(cluster)


def test_a_hub_name_is_left_to_the_actor_to_find() -> None:
    check_files(parse(written(SGLANG, b"/models/demo", b"Qwen/Qwen3-0.6B"), ROOT))


def test_a_missing_tokenizer_is_said_before_anything_starts(tmp_path: Path) -> None:
    text = f"models: [{{name: a, engine: simulated, tokenizer: {tmp_path}, cast: {{processor: {{}}, decode: {{}}}}}}]"
    with pytest.raises(ConfigError, match=r"models\[0\].tokenizer: .*tokenizer.json is no readable file"):
        check_files(parse(text.encode(), ROOT))
