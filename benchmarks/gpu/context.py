"""What every part is given: the device, the model's size, GPUs, time, a folder, and a result that survives a kill."""

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import END_OF_TEXT, TINY, model_folder
from benchmarks.rig import ROOT

CUDA_ARGS: dict[str, Any] = {"load_format": "dummy", "random_seed": 1, "cuda_graph_max_bs_decode": 128}


@dataclass
class Result:
    """One part's result; `save` after each cell writes it whole."""

    path: Path
    data: dict[str, Any]

    def save(self) -> None:
        """Write it, in one step, so that a kill leaves the old or the new one."""
        new = self.path.with_suffix(".new")
        new.write_text(without_paths(json.dumps(self.data, indent=1)) + "\n")
        new.replace(self.path)


def without_paths(text: str) -> str:
    """Leave out where this machine has its folders: a result is read elsewhere."""
    for folder, name in ((ROOT, "."), (tempfile.gettempdir(), "TMP"), (Path.home(), "~")):
        text = text.replace(f"{folder}/", f"{name}/")
    return text


@dataclass
class Context:
    """What a part may use.

    `gpus` are the indices on this machine (`CUDA_VISIBLE_DEVICES` is set to them already), `scratch` an empty folder of
    the part's own, `end` the monotonic time at which it should be done. `env` is for every engine of a cluster,
    `publisher` says whether clusters have one; `cells` are those asked for (tokens in, tokens out, at once).
    """

    device: str
    size: str
    gpus: list[int]
    scratch: Path
    end: float
    quick: bool
    env: dict[str, str] = field(default_factory=dict)
    publisher: bool = True
    cells: list[tuple[int, int, int]] = field(default_factory=list)

    def config(self, models: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A cluster's configuration."""
        return {"models": models, "publisher": {"enabled": self.publisher}} | more

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def pick(self, real: Any, rehearsal: Any) -> Any:
        """Choose the full size of something, or on a CPU (a rehearsal) or in a quick run the small one."""
        return rehearsal if self.quick else real

    @property
    def cuda(self) -> bool:
        """Whether this is not a rehearsal."""
        return self.device == "cuda"

    @property
    def vocabulary(self) -> int:
        """How many token ids are words; what comes above them is special."""
        return END_OF_TEXT if self.cuda else 500

    def model(self, name: str, cast: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A model of a cluster's configuration: dummy weights on a GPU, the tiny model on a CPU.

        `more` are keys of `messages.config.Model`; its `args` come on top of the usual ones.
        """
        args = more.pop("args", {})
        base: dict[str, Any] = {"name": name, "engine": "sglang", "device": self.device, "load_deadline": 400}
        base |= {"engine_tokenizer": False, "cast": cast, "env": self.env}
        if self.cuda:
            folder = str(model_folder(self.scratch, self.size))
            base |= {"path": folder, "tokenizer": folder, "context_length": 8_192, "args": CUDA_ARGS | args}
        else:
            known = {key: value for key, value in args.items() if not key.startswith("cuda_")}
            base |= {"path": str(TINY), "tokenizer": str(TINY), "context_length": 2_048, "args": known}
        return base | more
