"""Which casts make an embedding model, and which endpoint kinds a model may serve."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from messages import config
from messages.config import Cluster, ConfigError

EMBED: dict[str, Any] = {"processor": {}, "encoder": {"count": 2}}
GENERATE: dict[str, Any] = {"processor": {}, "prefill": {}, "decode": {}}


def parsed(**model: Any) -> Cluster:
    plain = {"name": "demo", "engine": "simulated", "tokenizer": "models/tiny"}
    data = msgspec.yaml.encode({"publisher": {"enabled": False}, "models": [plain | model]})
    return config.parse(data, Path("/"))


def test_processor_and_encoder_make_an_embedding_model() -> None:
    cluster = parsed(cast=EMBED)
    assert list(config.slots_of(cluster)) == ["demo-encoder-0", "demo-encoder-1", "demo-processor-0"]
    assert cluster.models[0].served == ["embeddings"]
    assert parsed(cast=GENERATE).models[0].served == ["chat", "completions"]
    assert parsed(cast=GENERATE, serves=[]).models[0].served == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"cast": {"processor": {}}}, "there is neither decode nor encoder"),
        ({"cast": {"encoder": {}}}, "there is no processor"),
        ({"cast": EMBED | {"decode": {}}}, "take out decode"),
        ({"cast": EMBED, "serves": ["chat"]}, "serves: chat cannot be served by an encoder"),
        ({"cast": GENERATE, "serves": ["embeddings"]}, "serves: embeddings are made by an encoder"),
        ({"cast": GENERATE, "serves": ["chats"]}, "serves"),
        ({"cast": GENERATE, "embedding": {"dimensions": "any"}}, "only a model with an encoder"),
        ({"cast": EMBED, "tool_call_parser": "qwen25"}, "tool_call_parser: an embedding model"),
        ({"cast": EMBED, "embedding": {"dimensions": [0]}}, "embedding.dimensions"),
        ({"cast": EMBED, "embedding": {"dimension": 3}}, "did you mean 'dimensions'"),
    ],
)
def test_what_cannot_be_is_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(**model)
    assert said in str(refused.value)
