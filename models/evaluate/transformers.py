"""Answers through Hugging Face's Transformers: the folder as it lies there, greedy, in fp32.

Writing 500 numbers token by token takes a CPU long. So the right answer is read first, in one pass: if each token of
it is the likeliest after those before it, greedy decoding writes just that. Where not, the answer is written.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.train.batches import Encoder
from models.train.examples import Conversation
from models.train.template import answer as right_answer

SPARE = 48
"""Tokens that an answer may have beyond the right one. Who needs more is wrong anyway."""


class Transformers:
    """A model folder, loaded."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self.device = device
        self._encoder = Encoder(self.tokenizer.backend_tokenizer)

    def answers(self, asked: Sequence[Conversation]) -> Iterator[str]:
        """Yield the answers, in order."""
        for conversation in asked:
            prompt = self._prompt(conversation)
            right = self._right(conversation)
            with torch.inference_mode():
                if self._is_written(prompt, right):
                    made = right[:-1]
                else:
                    made = self._write(prompt, len(right) + SPARE)
            yield self.tokenizer.decode(made, skip_special_tokens=True)

    def _prompt(self, conversation: Conversation) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            list(conversation.messages),
            tools=list(conversation.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=conversation.thinking,
        )
        return list(self.tokenizer(text)["input_ids"])

    def _right(self, conversation: Conversation) -> list[int]:
        documents = self._encoder.documents([conversation])
        if not documents:
            wanted = "".join(right_answer(conversation.last, thinking=conversation.thinking))
            raise ValueError(f"the context does not hold this request and its answer: {wanted[:80]}…")
        return documents[0].tokens[documents[0].asked :]

    def _is_written(self, prompt: list[int], right: list[int]) -> bool:
        given = torch.tensor([prompt + right], device=self.device)
        likeliest = self.model(given).logits[0, len(prompt) - 1 : -1].argmax(-1)
        return bool(torch.equal(likeliest, given[0, len(prompt) :]))

    def _write(self, prompt: list[int], most: int) -> list[int]:
        given = torch.tensor([prompt], device=self.device)
        made = self.model.generate(given, max_new_tokens=most, do_sample=False, temperature=None, top_k=None)
        return list(made[0, len(prompt) :].tolist())
