"""Models without weights: the configurations of Qwen3-0.6B and Qwen3-8B, with a tokenizer as large as theirs.

No weights are needed: `load_format: dummy` with a real architecture's configuration runs the real scheduler, kernels,
KV transfer and graphs; only the text means nothing.
"""

import itertools
import json
import string
from pathlib import Path
from typing import Any, Final

from benchmarks.rig import ROOT

TINY: Final = ROOT / "models" / "tiny"
VOCABULARY: Final = 151_936
END_OF_TEXT, END_OF_TURN = 151_643, 151_645

_COMMON: Final[dict[str, Any]] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "bos_token_id": END_OF_TEXT,
    "eos_token_id": END_OF_TURN,
    "use_cache": True,
    "transformers_version": "4.51.0",
}
CONFIGURATIONS: Final[dict[str, dict[str, Any]]] = {
    "0.6b": _COMMON
    | {
        "hidden_size": 1_024,
        "intermediate_size": 3_072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "8b": _COMMON
    | {
        "hidden_size": 4_096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
"""By size, as Qwen publishes them."""


def kv_bytes_per_token(size: str) -> int:
    """Bytes of KV cache that a token takes in bfloat16: two for each of key and value, head and layer."""
    config = CONFIGURATIONS[size]
    return int(2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2)


def model_folder(parent: Path, size: str) -> Path:
    """Write (once) and return a folder with config.json and a tokenizer for it."""
    folder = parent / f"qwen3-{size}"
    if not folder.exists():
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIGURATIONS[size]))
        _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Make the tiny model's tokenizer as large as Qwen3's: made-up merges of letters, special ids where Qwen's are.

    Texts decode as fast as with a real one, and nearly every id that the engine may choose is a text.
    """
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    words: dict[str, int] = tokenizer["model"]["vocab"]
    merges: list[list[str]] = tokenizer["model"]["merges"]
    pairs = list(itertools.product(string.ascii_lowercase, repeat=2))
    fours = itertools.product(map("".join, pairs), repeat=2)
    for left, right in itertools.chain(pairs, fours):
        if left + right not in words:
            words[left + right] = len(words)
            merges.append([left, right])
        if len(words) == END_OF_TEXT:
            break
    for number, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = END_OF_TEXT + number
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = json.loads((TINY / "tokenizer_config.json").read_text())
    about.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
