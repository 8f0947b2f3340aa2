"""Builds `models/tiny`: a Qwen3 of 0.8 million random weights with a byte-level tokenizer, for `make up` and the tests.

The small files (configuration, tokenizer) are in the repository, since the simulated engine and the processor's tests
need them where there is no PyTorch; the weights are made at set-up, the same ones everywhere, from a seed. What the
model says is noise, but the same noise in SGLang and in Hugging Face's transformers, which is what the tests compare.

    python -m models.build_tiny               # the weights
    python -m models.build_tiny --tokenizer   # the small files as well
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent / "tiny"
SEED = 20261122
# Wide enough that greedy answers differ from prompt to prompt and do not fall into a loop at once.
SPREAD = 0.2

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# Qwen3 has these as ordinary added tokens: decoding with "skip special tokens" keeps them.
MARKER_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
VOCABULARY = 512
END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "float32",
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": SPREAD,
    "intermediate_size": 256,
    "max_position_embeddings": 4096,
    "max_window_layers": 4,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}

# The text that the tokenizer's 240-odd merges are learnt from.
TEXT = """\
A troupe is a company of actors. Each actor has one part to play, learns it before the curtain rises, and tells the
others when it is ready. The stage manager watches over the whole cast: she opens the house when everybody is in place,
and when one of them falls ill she sends for the next, so that the play goes on and the audience sees no more than a
pause. What is the capital of France? The capital of France is Paris. How many days are there in a week? There are
seven days in a week. Please write a short story about the sea. Once upon a time there was a small boat that wanted to
cross the great ocean. Hello, how are you today? I am well, thank you. The quick brown fox jumps over the lazy dog.
def answer(question: str) -> int:
    for word in question.split():
        if word.isdigit():
            return int(word)
    return 42
{"name": "weather", "arguments": {"city": "Berlin", "unit": "celsius"}} 0 1 2 3 4 5 6 7 8 9 10 11 12 2024 2025 2026
"""

# The form of Qwen3's: turns between <|im_start|> and <|im_end|>, tools as JSON lines, thinking switched off by an empty
# thought.
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\nYou may call one or more functions. Their signatures:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nCall one with a JSON object: <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>' }}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + content.split('</think>')[-1].lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {{- '\\n<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
            {{- function.arguments if function.arguments is string else function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def tokenizer() -> Any:
    """Return the `tokenizers.Tokenizer`: every byte a token, merges learnt from TEXT, then the added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(MARKER_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKER_TOKENS])
    if made.get_vocab_size() != VOCABULARY:
        raise ValueError(f"TEXT yields {made.get_vocab_size()} tokens, the model has {VOCABULARY}")
    return made


def small_files() -> Iterator[tuple[str, str]]:
    """Yield the name and text of each file that is in the repository."""
    made = tokenizer()
    pad, end = made.token_to_id(END_OF_TEXT), made.token_to_id(END_OF_TURN)
    added = [made.id_to_token(index) for index in range(pad, VOCABULARY)]
    ends = {"eos_token_id": end, "pad_token_id": pad, "bos_token_id": pad}
    tokenizer_config = {
        "added_tokens_decoder": {
            str(made.token_to_id(text)): {
                "content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                "special": text in SPECIAL_TOKENS,
            }
            for text in added
        },
        "additional_special_tokens": [text for text in SPECIAL_TOKENS if text != END_OF_TEXT],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "model_max_length": CONFIG["max_position_embeddings"],
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }  # fmt: skip
    generation = {**ends, "do_sample": False, "eos_token_id": [end, pad]}
    yield "config.json", as_json({**CONFIG, **ends})
    yield "generation_config.json", as_json(generation)
    yield "tokenizer_config.json", as_json(tokenizer_config)
    yield "tokenizer.json", made.to_str(pretty=True) + "\n"


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each weight's name in transformers' Qwen3ForCausalLM, and its shape."""
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.self_attn.q_norm.weight", (head,)
        yield f"{prefix}.self_attn.k_norm.weight", (head,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


def write_weights(path: Path) -> int:
    """Write the weights as safetensors, whole or not at all; return how many there are."""
    import numpy as np
    from safetensors.numpy import save

    # PCG64's bits are fixed by NumPy's policy, and the normal deviates made of them have not changed since 1.17.
    source = np.random.Generator(np.random.PCG64(SEED))
    weights = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else source.standard_normal(shape, np.float32) * np.float32(SPREAD)
        for name, shape in shapes()
    }
    partial = path.with_suffix(".partial")
    partial.write_bytes(save(weights, metadata={"format": "pt"}))
    partial.replace(path)
    return sum(weight.size for weight in weights.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="build the tiny model in models/tiny")
    parser.add_argument("--tokenizer", action="store_true", help="write the configuration and the tokenizer as well")
    HERE.mkdir(exist_ok=True)
    if parser.parse_args().tokenizer:
        for name, text in small_files():
            (HERE / name).write_text(text)
    count = write_weights(HERE / "model.safetensors")
    print(f"  models/tiny: Qwen3, {count:,} random weights")


if __name__ == "__main__":
    main()
