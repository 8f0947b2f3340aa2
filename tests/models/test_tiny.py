"""The tiny model: its files are what the builder makes, its weights the same everywhere, its template renders."""

import hashlib
import json
from pathlib import Path

import jinja2
import pytest

from models import build_tiny

WEIGHTS = "1847797ae8ad4880bd14ca37d90e54fe049740db8e34b78a5b6c486773d4e6fe"


def test_the_files_in_the_repository_are_what_the_builder_makes() -> None:
    for name, text in build_tiny.small_files():
        assert (build_tiny.HERE / name).read_text() == text, f"{name}: run python -m models.build_tiny --tokenizer"


def test_every_text_comes_back_from_its_tokens_whole() -> None:
    made = build_tiny.tokenizer()
    text = 'Grüße, 世界! 🎭 \x00 {"city": "Berlin"}\n\n\tThe actors are ready.'
    ids = made.encode(text).ids
    assert made.decode(ids) == text
    assert len(ids) < len(text.encode())
    assert max(ids) < build_tiny.CONFIG["vocab_size"]


def test_special_tokens_vanish_and_markers_stay_when_decoding() -> None:
    made = build_tiny.tokenizer()
    ids = made.encode("<|im_start|><think>a</think><|im_end|>").ids
    assert len(ids) == 5
    assert made.decode(ids, skip_special_tokens=True) == "<think>a</think>"


def test_a_conversation_is_rendered_as_qwen3_has_it() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
        {"role": "user", "content": "Bye"},
    ]
    template = jinja2.Environment().from_string(
        json.loads((build_tiny.HERE / "tokenizer_config.json").read_text())["chat_template"]
    )
    assert template.render(messages=messages, add_generation_prompt=True, enable_thinking=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.sglang
def test_the_weights_are_the_same_on_every_machine(tmp_path: Path) -> None:
    count = build_tiny.write_weights(tmp_path / "model.safetensors")
    assert count == 722_304
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS
