"""The tokenizer: byte-level BPE that sees what the skills need to see.

Digits stand alone, so columns line up; a comma and its space are one token, so 500 numbers fit into 2,000 tokens.
A word never takes its space along: it is the same tokens in a sentence, in a list and in a tool's argument, and
copying it is copying tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.train import mixture
from models.train.source import CITIES, LEXICON, PEOPLE, Source, is_held_out
from models.train.template import TEMPLATE_FILE, rendered

VOCABULARY = 4096
CONTEXT = 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
"""Not special to the tokenizer, as in Qwen3: parsers read them in the text, so detokenising must keep them."""

PATTERN = "|".join(
    [
        r"\p{L}[\p{L}\p{M}]*",
        r"\p{N}",
        r"[\"\[\]{}][\"\[\]{}:, ]*",
        r" ?[,.;:!?]+ ?",
        r" ?[-+*/=<>_()']+ ?",
        r"[\r\n]+",
        r" +",
        r"[^\s\p{L}\p{N}]",
        r"\s",
    ]
)


def train(seed: str, conversations: int = 20_000) -> Tokenizer:
    """Learn the merges from training conversations and from the words that they are made of."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(MARKS),
        max_token_length=7,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(Source(f"tokenizer {seed}", held_out=False), conversations), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer, its configuration and the chat template, as Transformers loads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE_FILE.read_text(encoding="utf-8"), encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder that `save` wrote."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def pieces(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens that are plain letters, two or more of them: what words are made of."""
    return sorted(token for token in tokenizer.get_vocab() if len(token) > 1 and token.isascii() and token.isalpha())


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token. Raises ValueError when the tokenizer has no such token."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return int(number)


def _texts(source: Source, conversations: int) -> Iterator[str]:
    for _ in range(conversations):
        yield "".join(rendered(mixture.draw(source)))
    for listed in (LEXICON, PEOPLE, CITIES):
        # A token that only held-out words have would never be learnt.
        words = [word for word in listed if not is_held_out(f"value {word}")]
        yield " ".join(words * 20)
        yield " ".join(word.capitalize() for word in words * 5)
