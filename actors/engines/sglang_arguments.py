"""What SGLang is started with: defaults of ours, then the configuration's `args`, then what only we may set.

Any name of SGLang's ServerArgs can stand in `args`; an unknown one is refused with the nearest. `ServerArgs` is a
dataclass in some versions and not in others, so its names are taken from its signature.
"""

import difflib
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from actors.engines.engine import ConfigurationError, Disaggregation
from actors.engines.places import Places
from actors.engines.sglang_telemetry import telemetry_arguments
from messages.config import Model, Part

CPU: Final[dict[str, Any]] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "disable_overlap_schedule": True,
    "disable_cuda_graph": True,
    "sampling_backend": "pytorch",
    "grammar_backend": "xgrammar",
    "constrained_json_disable_any_whitespace": True,
    "dtype": "float32",
    "page_size": 16,
    "max_total_tokens": 32_768,
    "max_running_requests": 64,
    "chunked_prefill_size": 2_048,
    "mem_fraction_static": 0.1,
    "sleep_on_idle": True,
}
"""What runs without CUDA, and quietly: without `sleep_on_idle` an idle scheduler burns a core. A model that may put
white space anywhere in its JSON may never come to the end of it."""

CUDA: Final[dict[str, Any]] = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "page_size": 16,
    "disable_prefill_cuda_graph": True,
    "constrained_json_disable_any_whitespace": True,
}
"""What works without minutes of compiling: "flashinfer" compiles for over two at its first request, and capturing
the prefill graphs adds about 67 s to a start."""

OURS: Final = (
    "disaggregation_mode",
    "incremental_streaming_output",
    "custom_sigquit_handler",
    "skip_tokenizer_init",
    "is_embedding",
)
"""What the cast and the actor decide; refused in `args`."""


def arguments(
    model: Model,
    part: Part,
    side: Disaggregation,
    device: str,
    known: Iterable[str],
    on_child_failure: Callable[..., None],
    places: Places | None = None,
    *,
    embeds: bool = False,
    gpus: int = 0,
    memory_fraction: float | None = None,
) -> dict[str, Any]:
    """Merge the arguments for one engine.

    `known` are the names of this version's ServerArgs, `places` where its telemetry goes (None: it is to tell nothing),
    `embeds` says that it is to make vectors, `gpus` how many it was given, `memory_fraction` what share of their free
    memory it may take (None: as much as SGLang takes by itself).
    Raises ConfigurationError for an unknown name or one of ours.
    """
    names = set(known)
    asked = model.args | part.args
    for name in asked:
        if name in OURS:
            raise ConfigurationError(f"args.{name}: the cast decides this; take it out")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            nearest = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(f"args.{name}: this SGLang has no such argument{nearest}")
    defaults = {name: value for name, value in (CPU if device == "cpu" else CUDA).items() if name in names}
    merged = {"model_path": model.path, "log_level": "warning", "skip_server_warmup": True} | defaults | asked
    if gpus > 1 and not {"tp_size", "pp_size", "dp_size"} & asked.keys():
        merged["tp_size"] = gpus
    if memory_fraction is not None:
        merged.setdefault("mem_fraction_static", round(memory_fraction, 4))
    merged |= telemetry_arguments(asked, places, names)
    merged |= {
        "incremental_streaming_output": True,
        "custom_sigquit_handler": on_child_failure,
        "skip_tokenizer_init": not model.engine_tokenizer,
        "is_embedding": embeds,
    }
    if model.context_length is not None:
        merged["context_length"] = model.context_length
    if side != "null":
        merged["disaggregation_mode"] = side
        merged.setdefault("disaggregation_transfer_backend", "nixl")
    if side == "prefill":
        merged.setdefault("disaggregation_bootstrap_port", free_port(part.advertise))
        merged.setdefault("host", part.advertise)
    merged.setdefault("host", "127.0.0.1")
    merged.setdefault("port", free_port("127.0.0.1"))
    return merged


def free_port(host: str) -> int:
    """Find a port that is free now; a bootstrap port is new for each life, so that no old session is met on it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
