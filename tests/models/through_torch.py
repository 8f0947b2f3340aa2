"""What tests of troupe-small-chat need PyTorch for, in its own process: `python -m tests.models.through_torch DEED …`.

    agree FOLDER            the largest difference of logits between our model and Transformers', on packed documents
    answers FOLDER EACH     how many held-out requests of each skill are answered rightly, short answers only
    greedy ENGINE FOLDER    greedy tokens for 64 prompts, by transformers or by sglang, in fp32

Each prints one line of JSON at the end. What SGLang and Transformers import warns, and must not share a process with
the tests.
"""

import json
import sys
from pathlib import Path
from typing import Any

PROMPTS = 64
TOKENS = 96
SHORT = 300


def agree(folder: Path) -> float:
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from models.train import mixture
    from models.train.batches import LONGEST, Encoder
    from models.train.model import ChatModel, Shape
    from models.train.source import Source

    sizes = json.loads((folder / "config.json").read_text())
    ours = ChatModel(Shape(num_hidden_layers=sizes["num_hidden_layers"]))
    ours.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoder = Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
    source = Source("agree", held_out=False)
    documents = encoder.documents([mixture.draw(source) for _ in range(6)])
    batch = encoder.pack(documents, sum(len(document.tokens) for document in documents) + 5)
    tokens, positions, starts = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.starts))
    with torch.no_grad():
        packed = ours(tokens.long(), positions.int(), starts, LONGEST)
        at, worst = 0, 0.0
        for document in documents:
            alone = theirs(torch.tensor([document.tokens])).logits[0]
            worst = max(worst, float((packed[at : at + len(alone)] - alone).abs().max()))
            at += len(alone)
    return worst


def answers(folder: Path, each: int) -> dict[str, int]:
    from models.evaluate import judge
    from models.evaluate.transformers import Transformers
    from models.train import mixture

    short = [c for c in judge.cases(4 * each, "test") if len(c.last.answer) < SHORT]
    asked = [c for name in mixture.NAMES for c in [c for c in short if c.skill == name][:each]]
    said = list(Transformers(folder).answers(asked))
    return {row.skill: row.right for row in judge.score(asked, said)}


def greedy(engine: str, folder: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    from models.evaluate import judge
    from models.train import mixture, template

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = judge.cases(PROMPTS // len(mixture.NAMES) + 1, "greedy")[:PROMPTS]
    prompts = [tokenizer.encode(template.prompt(c.messages, c.tools, thinking=c.thinking)).ids for c in asked]
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return _by_sglang(folder, prompts, stops) if engine == "sglang" else _by_transformers(folder, prompts)


def _by_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = []
    with torch.inference_mode():
        for prompt in prompts:
            given = torch.tensor([prompt])
            out = model.generate(given, max_new_tokens=TOKENS, do_sample=False, temperature=None, top_k=None)
            made.append(out[0, len(prompt) :].tolist())
    return made


def _by_sglang(folder: Path, prompts: list[list[int]], stops: list[int]) -> list[list[int]]:
    import sglang

    from actors.engines.sglang_arguments import CPU

    engine = sglang.Engine(
        model_path=str(folder), skip_tokenizer_init=True, skip_server_warmup=True, log_level="warning", **CPU
    )
    try:
        sampling = {"temperature": 0.0, "max_new_tokens": TOKENS, "stop_token_ids": stops}
        return [list(made["output_ids"]) for made in engine.generate(input_ids=prompts, sampling_params=sampling)]
    finally:
        engine.shutdown()


def main() -> None:
    from actors.engines.cpu_shims import activate

    activate()
    deed, *rest = sys.argv[1:]
    if deed == "agree":
        made: Any = agree(Path(rest[0]))
    elif deed == "answers":
        made = answers(Path(rest[0]), int(rest[1]))
    else:
        made = greedy(rest[0], Path(rest[1]))
    sys.stdout.write(f"\n{json.dumps(made)}\n")


if __name__ == "__main__":
    main()
