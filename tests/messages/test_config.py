"""Configurations: what is wrong is said with its place and what would be right."""

import socket
from pathlib import Path

import msgspec
import pytest

from messages import config, config_page
from messages.config import ConfigError
from messages.ids import alias_of
from tests.harness import ROOT

GOOD = """
publisher: {enabled: true, name: one}
models:
  - name: Qwen/Qwen3-0.6B
    path: ./model
    cast: {processor: {count: 2}, prefill: {}, decode: {}}
"""
TEXT_ENCODER = "path: a/b\n    text: true\n    serves: [embeddings]\n    cast: {processor: {}, encoder: {}}"


def test_a_good_one_has_its_slots_in_starting_order(tmp_path: Path) -> None:
    cluster = config.parse(GOOD.encode(), tmp_path)
    assert list(config.slots_of(cluster)) == [
        "Qwen_Qwen3-0_6B-prefill-0",
        "Qwen_Qwen3-0_6B-decode-0",
        "Qwen_Qwen3-0_6B-processor-0",
        "Qwen_Qwen3-0_6B-processor-1",
        "one-publisher-0",
    ]
    assert cluster.models[0].path == str((tmp_path / "model").resolve())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("name: Qwen/Qwen3-0.6B", "nam: x"), "models[0].nam: unknown; did you mean 'name'?"),
        (("prefill: {}", "prefil: {}"), "prefil"),
        (("count: 2", "count: two"), "models[0].cast[...].count: expected `int`, got `str`"),
        (("count: 2", "count: -1"), "models[0].cast[...].count: expected `int` >= 0"),
        (("count: 2", "restart: {intensty: 3}"), "restart.intensty: unknown; did you mean 'intensity'?"),
        (("processor: {count: 2}, ", ""), "there is no processor"),
        ((", decode: {}", ""), "there is neither decode nor encoder"),
        (("decode: {}", "decode: {min_ready: 2}"), "min_ready: 2 is more than count (1)"),
        (("decode: {}", "decode: {gpus: [[0], [1]]}"), "gpus: 2 lists for 1 slots; each has its own"),
        (
            ("decode: {}", "decode: {gpus: [[0]], understudies: 1}"),
            "decode.gpus: 1 lists for 2 slots (1 of them understudies)",
        ),
        (("count: 2", "count: 2, understudies: 1"), "processor.understudies: a processor has none"),
        (("decode: {}", "decode: {count: 0, min_ready: 0, understudies: 1}"), "there is nobody to stand in for"),
        (
            ("decode: {}", "decode: {understudies: 1, spawn: external}"),
            "decode.understudies: another manager starts these slots",
        ),
        (("    path: ./model\n", ""), "path: missing"),
        (("models:", "cluster: a.b\nmodels:"), "cluster: the name 'a.b' may hold only"),
        (("models:", "models: [}"), "not YAML"),
        (("name: one", "name: a.b"), "publisher.name: the name 'a.b' may hold only"),
        (("name: one", "http: {prt: 1}"), "publisher.http.prt: unknown; did you mean 'port'?"),
        (("decode: {}", "decode: {}, publisher: {}"), "cast.publisher: it belongs to no model"),
        (
            ("path: ./model", "path: a/b\n    text: true\n    chat_template: c"),
            "models[0].chat_template: with `text: true`",
        ),
        (
            ("path: ./model", "path: a/b\n    text: true\n    engine_tokenizer: false"),
            "models[0].engine_tokenizer: `text:",
        ),
        (("path: ./model", "path: a/b\n    text: true\n    tokenizer: c"), "models[0].tokenizer: with `text: true`"),
        (
            ("path: ./model", "path: a/b\n    text: true\n    serves: [chat, completions]"),
            "serves: completions cannot be",
        ),
        (
            ("path: ./model\n    cast: {processor: {count: 2}, prefill: {}, decode: {}}", TEXT_ENCODER),
            "models[0].text: only chats are left",
        ),
    ],
)
def test_a_bad_one_says_where_and_what(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse(GOOD.replace(*change).encode(), tmp_path)
    assert said in str(refused.value)


def test_a_model_of_texts_serves_chats(tmp_path: Path) -> None:
    made = config.parse(GOOD.replace("path: ./model", "path: a/b\n    text: true").encode(), tmp_path)
    assert made.models[0].served == ["chat"]


def test_the_publisher_is_the_hosts_unless_named_and_can_be_left_out(tmp_path: Path) -> None:
    cluster = config.parse(GOOD.replace(", name: one", "").encode(), tmp_path)
    assert list(config.slots_of(cluster))[-1] == f"{alias_of(socket.gethostname())}-publisher-0"
    cluster = config.parse(GOOD.replace("enabled: true", "enabled: false").encode(), tmp_path)
    assert not any("publisher" in slot for slot in config.slots_of(cluster))


def test_two_models_with_one_alias_are_refused(tmp_path: Path) -> None:
    other = GOOD.partition("models:\n")[2].replace("Qwen/Qwen3-0.6B", "Qwen_Qwen3-0_6B")
    with pytest.raises(ConfigError, match="both have the alias"):
        config.parse((GOOD + other).encode(), tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        config.read(tmp_path / "none.yaml")


def test_a_slot_that_is_not_there_brings_the_nearest(tmp_path: Path) -> None:
    cluster = config.parse(GOOD.encode(), tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'Qwen_Qwen3-0_6B-decode-0'"):
        config.find_slot(cluster, "Qwen_Qwen3-0_6B-decode-00")


def test_the_page_of_the_configuration_is_the_one_made_from_the_code() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == config_page.as_markdown(), "run: python -m messages.config_page > docs/configuration.md"


def test_every_key_of_the_page_s_many_is_known_and_none_is_missing() -> None:
    page = config_page.as_markdown()
    for kind in (config.Cluster, config.Nats, config.Model, config.Part, config.Limits, config.Http):
        for field in msgspec.structs.fields(kind):
            assert f"\n| `{field.encode_name}` | " in page
