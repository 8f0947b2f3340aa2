"""Greedy tokens by Hugging Face's transformers, as the yardstick: `python -m tests.engines.reference MODEL OUT COUNT`.

A process of its own: what SGLang and transformers import warns, and must not share a process with the tests.
"""

import json
import random
import sys
from pathlib import Path

TOKENS = 32


def prompts(count: int, vocabulary: int = 500, longest: int = 500) -> list[list[int]]:
    """Prompts of lengths from 1 to `longest`; every third begins as another one does."""
    chance = random.Random(20)
    shared = [chance.randrange(10, vocabulary) for _ in range(longest)]
    made = []
    for number in range(count):
        length = 1 + number * (longest - 1) // (count - 1)
        begin = shared[: length * 2 // 3] if number % 3 == 0 else []
        made.append(begin + [chance.randrange(10, vocabulary) for _ in range(length - len(begin))])
    return made


def main() -> None:
    from actors.engines.cpu_shims import activate

    activate()
    import torch
    from transformers import AutoModelForCausalLM

    folder, out, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    answers = []
    with torch.inference_mode():
        for prompt in prompts(count):
            ids, cache, answer = torch.tensor([prompt]), None, []
            for _ in range(TOKENS):
                step = model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                answer.append(int(step.logits[0, -1].argmax()))
                ids = torch.tensor([[answer[-1]]])
            answers.append(answer)
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
