"""Writes into data/parsers/ what SGLang's own parsers say of each text there, read whole and in SGLang's own order.

    python -m tests.processor.record_parsers

It needs SGLang (0.5.23 was used), so it is no test; tests/processor/test_like_sglang.py compares without it.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from actors.engines import cpu_shims

FOLDER = Path(__file__).parent / "data" / "parsers"
TOOLS = ("weather", "now", "search", "add")


def said(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """Read one text as SGLang's chat endpoint does (serving_chat.py): reasoning first, calls in what is left."""
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    reasoning, content = "", case["text"]
    if name != "qwen25":
        # gpt-oss's prompt has begun a message and no more, which is what its parser expects in any case.
        parser = ReasoningParser(name, stream_reasoning=False, force_reasoning=bool(case.get("begun")))
        thought, rest = parser.parse_non_stream(content)
        reasoning, content = thought or "", rest or ""
    calls = []
    if case.get("tools", name == "qwen25"):
        tools = [Tool(type="function", function={"name": tool, "parameters": {}}) for tool in TOOLS]
        functions = FunctionCallParser(tools, "gpt-oss" if name == "gpt-oss" else "qwen25")
        if functions.has_tool_call(content):
            # What the parser raises is logged there, and the text is then told as it is.
            with contextlib.suppress(Exception):
                content, found = functions.parse_non_stream(content)
                calls = [[call.name, json.loads(call.parameters)] for call in found]
    return {"reasoning": reasoning, "content": content, "calls": calls}


def main() -> None:
    cpu_shims.activate()
    for path in sorted(FOLDER.glob("*.json")):
        cases = json.loads(path.read_text())
        for case in cases:
            case["sglang"] = said(path.stem, case)
        path.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
