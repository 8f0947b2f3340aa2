"""Who may import whom: messages nothing of ours, actors and supervisor only messages, and neither one the other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE_LIBRARIES = {"nixl", "numpy", "sgl_kernel", "sglang", "torch", "torchvision", "transformers", "triton"}

# Folder or file of a package: what it may import beside the standard library. The longest prefix that fits counts.
ALLOWED = {
    "messages": {"messages", "msgspec", "nats"},
    "actors": {
        "actors", "messages", "aiohttp", "anyio", "huggingface_hub", "jinja2", "msgspec", "nats", "prometheus_client",
        "setproctitle", "tokenizers", "uvloop",
    },
    "actors/engines": {"actors", "messages", "msgspec", "zmq"} | ENGINE_LIBRARIES,
    "actors/encoder": {"actors", "messages", "anyio", "msgspec", "zmq"},
    "actors/publisher": {"actors", "messages", "aiohttp", "anyio", "msgspec", "nats", "prometheus_client", "zmq"},
    "supervisor": {
        "supervisor", "messages", "aiohttp", "anyio", "msgspec", "nats", "prometheus_client", "uvloop",
    },
}  # fmt: skip


def sources() -> list[str]:
    paths = [path for package in ("messages", "actors", "supervisor") for path in (ROOT / package).rglob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def imported(path: str) -> set[str]:
    """Return the top-level names that a file imports, at whatever depth, also for type checking only."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(), path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import hides who is known"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_only_what_its_layer_may_know(path: str) -> None:
    layer = max((prefix for prefix in ALLOWED if path.startswith(prefix)), key=len)
    wrong = imported(path) - ALLOWED[layer] - sys.stdlib_module_names
    assert not wrong, f"{path} imports {', '.join(sorted(wrong))}, which {layer} may not know"


def test_the_vocabulary_and_the_supervisor_load_no_engine() -> None:
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources()]
    wanted = [name for name in names if name.split(".")[0] != "actors" and not name.endswith("__main__")]
    unwanted = {"actors", "zmq", *ENGINE_LIBRARIES}
    code = f"import sys, {', '.join(wanted)}\nprint(*sorted({unwanted!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
