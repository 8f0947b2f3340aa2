"""Puts arguments through SGLang's own parser: what each configuration makes of each engine, as JSON in and out.

A program of its own, run once for all configurations: importing SGLang takes it most of a minute on a busy machine.
"""

import argparse
import inspect
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read {"config": path, "slots": {name: [gpus, fraction]}} a line; write what the parser made of each slot."""
    from actors.engines import cpu_shims

    cpu_shims.activate()
    from sglang.srt.server_args import ServerArgs

    from actors.engines.places import Places
    from actors.engines.sglang_arguments import arguments
    from messages import config

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = inspect.signature(ServerArgs).parameters
    places = Places(endpoint="ipc:///tmp/x:0", replay="ipc:///tmp/y:0", metrics="/tmp/m")
    said = {}
    for line in sys.stdin:
        asked = json.loads(line)
        cluster = config.read(Path(asked["config"]))
        for name, (gpus, fraction) in asked["slots"].items():
            model, slot = config.find_slot(cluster, name)
            side: Any = slot.role if "prefill" in model.cast else "null"
            made = arguments(
                model, model.cast[slot.role], side, "cuda", known, print, places, gpus=gpus, memory_fraction=fraction
            )
            made.pop("custom_sigquit_handler")
            read = ServerArgs.from_cli_args(parser.parse_args(argv(parser, made)))
            said[f"{Path(asked['config']).stem} {name}"] = {
                "asked": made,
                "read": {field: getattr(read, field) for field in made},
            }
    sys.stdout.write(json.dumps(said, default=str) + "\n")


def argv(parser: argparse.ArgumentParser, made: dict[str, Any]) -> list[str]:
    """Write arguments as a user of SGLang's command line would."""
    flags = {action.dest: action for action in reversed(parser._actions) if action.option_strings}
    words = []
    for name, value in made.items():
        flag = max(flags[name].option_strings, key=len)
        if isinstance(value, bool):
            words += [flag] if value else []
        elif value is not None:
            words += [flag, value if isinstance(value, str) else json.dumps(value)]
    return words


if __name__ == "__main__":
    main()
