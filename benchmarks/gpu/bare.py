"""SGLang without Troupe, in a process of its own, with the arguments that Troupe would give it.

    python -m benchmarks.gpu.bare engine ARGUMENTS    # `sglang.Engine`; obeys (jobs.py), its own consumer
    python -m benchmarks.gpu.bare server ARGUMENTS    # what `python -m sglang.launch_server` runs

ARGUMENTS is JSON of ServerArgs' names.
"""

import inspect
import json
import sys
from typing import Any

import msgspec
import uvloop

from benchmarks.gpu.jobs import Seen, Watch, obey_by


def server_arguments(model: dict[str, Any], device: str) -> dict[str, Any]:
    """What Troupe passes to SGLang for the decode slot of an aggregated model, but for what tells of it (KV events,
    metrics), which a bare engine has off."""
    from actors.engines.sglang import _import
    from actors.engines.sglang_arguments import arguments
    from messages.config import Model

    made = msgspec.convert(model, Model)
    _, server_args = _import(device)
    known = inspect.signature(server_args).parameters
    merged = arguments(made, made.cast["decode"], "null", device, known, print)
    del merged["custom_sigquit_handler"]
    return merged


async def obey_with(engine: Any) -> None:
    """Do jobs on an engine of this process."""

    async def ask(prompt: list[int], tokens: int) -> Seen:
        watch = Watch()
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        async for chunk in await engine.async_generate(input_ids=prompt, sampling_params=sampling, stream=True):
            watch.piece(len(chunk["output_ids"]))
        return watch.seen()

    await obey_by(ask)


def main() -> None:
    """Be an engine or a server."""
    kind, said = sys.argv[1:]
    model = json.loads(said)
    merged = server_arguments(model, model["device"])
    if kind == "engine":
        import sglang

        engine = sglang.Engine(**merged)
        uvloop.run(obey_with(engine))
        engine.shutdown()
    else:
        from sglang.srt.entrypoints.http_server import launch_server
        from sglang.srt.server_args import ServerArgs

        merged["port"] = int(model["args"].get("port") or merged["port"])
        launch_server(ServerArgs(**merged))


if __name__ == "__main__":
    main()
