"""Answers through Hugging Face's Transformers: the folder as it lies there, greedy, in fp32."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.train.examples import Conversation
from models.train.template import answer as right_answer

SPARE = 48
"""Tokens that a batch may write beyond its longest right answer. Who needs more is wrong anyway."""


class Transformers:
    """A model folder, loaded."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self.device = device

    def answers(self, asked: Sequence[Conversation], batch: int = 32) -> Iterator[tuple[int, str]]:
        """Yield the number of a conversation and its answer, in an order that keeps batches even."""
        lengths = [len("".join(right_answer(c.last, thinking=c.thinking))) for c in asked]
        order = sorted(range(len(asked)), key=lambda number: (lengths[number], number))
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            yield from zip(numbers, self._together([asked[number] for number in numbers]), strict=True)

    def _together(self, asked: Sequence[Conversation]) -> list[str]:
        prompts = [
            self.tokenizer.apply_chat_template(
                list(c.messages),
                tools=list(c.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=c.thinking,
            )
            for c in asked
        ]
        right = ["".join(right_answer(c.last, thinking=c.thinking)) for c in asked]
        longest = max(self._tokens(text, c) for text, c in zip(right, asked, strict=True))
        given = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        with torch.inference_mode():
            made = self.model.generate(
                **given, max_new_tokens=longest + SPARE, do_sample=False, temperature=None, top_k=None
            )
        return list(self.tokenizer.batch_decode(made[:, given["input_ids"].shape[1] :], skip_special_tokens=True))

    def _tokens(self, text: str, conversation: Conversation) -> int:
        return len(text) if conversation.last.letterwise else len(self.tokenizer(text)["input_ids"])
