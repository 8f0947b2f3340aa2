"""troupe-small-chat as it lies in the repository: its size, its files, its template, and what its tokenizer sees."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tokenizers import Tokenizer

from actors.processor.intake import tools_of as for_template
from actors.processor.refusal import RefusalError
from actors.processor.template import Template
from messages import codec
from messages.submit import Chat
from models.evaluate.through import as_openai
from models.train import mixture, template
from models.train.skills import tools
from models.train.source import Source
from tests.harness import ROOT

MODEL = ROOT / "models" / "troupe-small-chat"
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
TEMPLATE = Template.load(MODEL, {}, {}, None)


def read(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((MODEL / name).read_text())
    return made


def test_the_weights_are_bf16_of_at_most_12_megabytes_under_qwen3s_names() -> None:
    with (MODEL / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    assert (MODEL / "model.safetensors").stat().st_size <= 12_000_000
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    config = read("config.json")
    assert header["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    layers = {name.split(".")[2] for name in header if name.startswith("model.layers.")}
    assert len(layers) == config["num_hidden_layers"]


def test_the_configuration_names_the_tokenizers_ids() -> None:
    config, generation = read("config.json"), read("generation_config.json")
    end, padding = TOKENIZER.token_to_id("<|im_end|>"), TOKENIZER.token_to_id("<|endoftext|>")
    assert (config["eos_token_id"], config["pad_token_id"]) == (end, padding)
    assert generation["eos_token_id"] == [end, padding]
    assert TOKENIZER.get_vocab_size() == config["vocab_size"]
    assert config["max_position_embeddings"] >= 4096


def test_500_numbers_fit_into_2000_tokens() -> None:
    text = ", ".join(map(str, range(1, 501)))
    assert len(TOKENIZER.encode(text).ids) <= 2000


@pytest.mark.parametrize("text", ["Count to 1987.", "What is 12 + 3456?", '{"n": 70}'])
def test_digits_are_tokens_of_their_own(text: str) -> None:
    tokens = [TOKENIZER.decode([token]) for token in TOKENIZER.encode(text).ids]
    assert [token for token in tokens if any(letter.isdigit() for letter in token)] == [c for c in text if c.isdigit()]


def test_a_word_is_the_same_tokens_wherever_it_stands() -> None:
    word = TOKENIZER.encode("Trondheim").ids
    for before, after in [("the weather in ", "?"), ('{"city": "', '"}'), ("Oslo, ", ", Rome"), ("\n", "\n")]:
        text = TOKENIZER.encode(f"{before}Trondheim{after}").ids
        assert any(text[at : at + len(word)] == word for at in range(len(text)))


@given(some.text())
def test_every_text_comes_back_from_its_tokens_whole(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_thinking_and_tool_marks_are_kept_when_special_tokens_are_dropped() -> None:
    text = "<think>\nx\n</think>\n\n<tool_call>\n{}\n</tool_call>"
    ids = TOKENIZER.encode(f"<|im_start|>{text}<|im_end|>").ids
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.token_to_id("<tool_response>") is not None


@pytest.mark.parametrize("skill", mixture.NAMES)
def test_the_template_makes_the_prompts_that_the_model_was_trained_on(skill: str) -> None:
    source = Source(f"template {skill}", held_out=False)
    for _ in range(40):
        conversation = mixture.conversation(source, skill, turns=source.number(0, 2))
        messages, offered = list(conversation.messages), list(conversation.tools)
        trained = template.prompt(messages, offered, thinking=conversation.thinking)
        extra = {"enable_thinking": conversation.thinking}
        assert (
            TEMPLATE.render([dict(m) for m in messages], tools=[dict(t) for t in offered] or None, extra=extra)
            == trained
        )
        assert TEMPLATE.render(as_openai(messages), tools=[dict(t) for t in offered] or None, extra=extra) == trained


def test_a_tool_that_comes_over_the_api_is_rendered_as_in_training() -> None:
    source = Source("tools over the api", held_out=False)
    for tool in (tool for _ in range(50) for tool in tools.some_tools(source, 2)):
        body = codec.from_json(
            codec.to_json({"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [tool]}), Chat
        )
        (seen,) = for_template(body) or []
        assert list(seen) == list(tool) == ["type", "function"]


def test_the_template_in_the_folder_is_the_one_in_the_sources() -> None:
    assert (MODEL / "chat_template.jinja").read_text() == template.TEMPLATE_FILE.read_text()


def test_thinking_is_on_unless_it_is_switched_off() -> None:
    asked = [{"role": "user", "content": "2 + 2"}]
    assert TEMPLATE.render(asked).endswith("<|im_start|>assistant\n")
    off = TEMPLATE.render(asked, extra={"enable_thinking": False})
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_thoughts_of_earlier_answers_are_dropped() -> None:
    said = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}
    prompt = TEMPLATE.render([{"role": "user", "content": "2 + 2"}, said, {"role": "user", "content": "3 + 3"}])
    assert "hm" not in prompt
    assert "<|im_start|>assistant\n4<|im_end|>" in prompt


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "king", "content": "x"}, "Unknown role king"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "reads text only"),
    ],
)
def test_the_template_says_what_it_cannot_take(message: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusalError, match=says):
        TEMPLATE.render([message])
