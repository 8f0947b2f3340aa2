"""Writing the model's folder as Transformers and SGLang load it: bf16 weights, configs, tokenizer, template."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from models.train import tokenizer as tokenizers
from models.train.model import ChatModel


def write(model: ChatModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything but the card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizers.save(tokenizer, folder)
    end, padding = tokenizers.token_id(tokenizer, "<|im_end|>"), tokenizers.token_id(tokenizer, "<|endoftext|>")
    ids = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": padding}
    _write(folder / "config.json", {**model.shape.config(), **ids})
    # One right answer each: whoever takes the defaults samples from the likeliest token alone.
    generation = {
        "eos_token_id": [end, padding],
        "pad_token_id": padding,
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
    }
    _write(folder / "generation_config.json", generation)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
