"""Templates of well-known families: what we render of a client's body is what transformers' own function renders."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.processor.intake import Intake
from actors.processor.refusal import RefusalError
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages import codec
from messages.config import Model, Part
from messages.submit import Chat
from tests.harness import ROOT

FOLDER = Path(__file__).parent / "templates"
FAMILIES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
PARTS_ONLY = {"smolvlm"}
"""Families whose template reads content as parts and nothing else: their own processors give it so."""
TEXT_ARGUMENTS = {"deepseekv3", "deepseek_r1_distill"}
"""Families whose template puts a call's arguments into a text."""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Tells the weather: <rain> & "sun", d\u00e9j\u00e0 vu.',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
USER = {"role": "user", "content": "Hi"}
CALLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in K\u00f6ln and \u6771\u4eac?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "K\u00f6ln"}}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": '{"sky": "grey"}'},
    {"role": "assistant", "content": "Grey in K\u00f6ln."},
    {"role": "user", "content": "Thanks \U0001f600"},
]  # fmt: skip
THOUGHT = [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Let me see.\n"}, USER]

CASES: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [USER]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    "several turns": {"messages": [USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "No."}]},
    "unicode": {
        "messages": [{"role": "user", "content": "e\u0301 \u6771\u4eac \U0001f469\u200d\U0001f680 <b>&amp;\u2028'\""}]
    },
    "white space": {"messages": [{"role": "user", "content": "  \n\tx\n\n"}]},
    "tools": {"messages": [USER], "tools": [WEATHER]},
    "tools and system": {"messages": [{"role": "system", "content": "Be brief."}, USER], "tools": [WEATHER, WEATHER]},
    "a call and its result": {"messages": CALLS, "tools": [WEATHER]},
    "thinking off": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "thinking on": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}},
    "little effort": {"messages": [USER], "reasoning_effort": "low"},
    "much effort": {"messages": [USER], "reasoning_effort": "high"},
    "thought before": {"messages": THOUGHT},
}


def ours(template: str, case: dict[str, Any]) -> str | None:
    """What we make of a client's body; None if the template refuses it."""
    intake = Intake(Model(name="demo", cast={"processor": Part()}), TOKENIZER, Template(template, SPECIAL))
    body = json.loads(json.dumps(case))
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    try:
        return intake._render(codec.from_json(json.dumps(body).encode(), Chat), held=False)
    except RefusalError:
        return None


def theirs(family: str, template: str, case: dict[str, Any]) -> str | None:
    """What transformers makes of the same conversation in the form that its documentation asks for."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(ROOT / "models" / "tiny" / "tokenizer.json"), chat_template=template, **SPECIAL
    )
    messages = json.loads(json.dumps(case["messages"]))
    for message in messages:
        if family in PARTS_ONLY:
            message["content"] = [{"type": "text", "text": message["content"]}]
        for call in message.get("tool_calls", ()):
            if family in TEXT_ARGUMENTS:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    words = {name: case[name] for name in ("reasoning_effort",) if name in case} | case.get("chat_template_kwargs", {})
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages, tools=case.get("tools"), tokenize=False, add_generation_prompt=True, **words
        )
    except Exception:
        return None
    return rendered


TOKENIZER = Tokenizer(str(ROOT / "models" / "tiny"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_rendered_as_by_transformers(family: str) -> None:
    pytest.importorskip("transformers")
    template = (FOLDER / f"{family}.jinja").read_text()
    rendered = 0
    for name, case in CASES.items():
        wanted = theirs(family, template, case)
        assert ours(template, case) == wanted, name
        rendered += wanted is not None
    assert rendered >= len(CASES) - 1


def test_content_as_parts_is_one_text_where_a_template_knows_texts_alone() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    for family in FAMILIES:
        template = (FOLDER / f"{family}.jinja").read_text()
        rendered = ours(template, {"messages": [{"role": "user", "content": parts}]})
        assert rendered is not None, family
        assert "one" in rendered and "two" in rendered and "'text'" not in rendered, family


def test_a_switch_changes_what_is_rendered() -> None:
    def rendered(family: str, **words: Any) -> str | None:
        return ours((FOLDER / f"{family}.jinja").read_text(), {"messages": [USER], **words})

    for family in ("qwen3", "qwen3_5_think", "glm4moe"):
        off, on = ({"enable_thinking": switch} for switch in (False, True))
        assert rendered(family, chat_template_kwargs=off) != rendered(family, chat_template_kwargs=on), family
    assert rendered("gptoss", reasoning_effort="low") != rendered("gptoss", reasoning_effort="high")
