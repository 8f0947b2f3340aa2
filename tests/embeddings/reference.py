"""Vectors by Hugging Face's transformers, as the yardstick: `python -m tests.embeddings.reference MODEL INPUTS OUT`.

Pooled as SGLang does for a decoder (`srt/layers/pooler.py`): the last token's hidden state after the final norm,
brought to length 1. A process of its own: what SGLang and transformers import warns, and must not do so in the tests'.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    from actors.engines.cpu_shims import activate

    activate()
    import torch
    from transformers import AutoModelForCausalLM

    folder, inputs, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model
    model.eval()
    vectors = []
    with torch.inference_mode():
        for tokens in json.loads(inputs.read_text()):
            hidden = model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
            vectors.append(torch.nn.functional.normalize(hidden, dim=-1).tolist())
    out.write_text(json.dumps(vectors))


if __name__ == "__main__":
    main()
