"""How answers are judged: the right one passes, the way it was thought of does not matter, a wrong one fails."""

import json
from collections.abc import Sequence

import anyio.lowlevel
import pytest

from models.evaluate import judge
from models.evaluate.through import as_openai, as_written, collect
from models.train import mixture, template
from models.train.examples import Conversation, Message, Tool


def right_answers(asked: Sequence[Conversation], *, thinking: bool) -> list[str]:
    return ["".join(template.answer(c.last, thinking=thinking)) for c in asked]


@pytest.mark.parametrize("thinking", [True, False])
def test_the_right_answer_is_right_whether_it_was_thought_about_or_not(thinking: bool) -> None:
    asked = judge.cases(5)
    rows = judge.score(asked, right_answers(asked, thinking=thinking))
    assert [row.skill for row in rows] == mixture.NAMES
    assert all(row.right == row.asked == 5 for row in rows)


def test_an_answer_to_something_else_is_wrong() -> None:
    for skill in mixture.NAMES:
        asked = judge.cases(8, skills=[skill])
        answers = right_answers(asked, thinking=False)
        for conversation, answer in zip(asked, [*answers[1:], answers[0]], strict=True):
            same = answer == "".join(template.answer(conversation.last, thinking=False))
            assert judge.is_right(conversation.last, answer) == same


def test_a_missing_number_a_wrong_argument_and_a_torn_call_are_wrong() -> None:
    count, call = judge.cases(1, skills=["counting", "tools"])
    answer = count.last.answer
    assert not judge.is_right(count.last, answer.replace(", ", " ", 1))
    said = template.answer(call.last, thinking=False)[1]
    assert judge.is_right(call.last, said)
    assert not judge.is_right(call.last, said.replace('"arguments": {', '"arguments": {"more": 1, '))
    assert not judge.is_right(call.last, said.removesuffix("</tool_call>"))
    assert not judge.is_right(call.last, said + " Done.")


def test_json_is_judged_by_its_meaning() -> None:
    (asked,) = judge.cases(1, skills=["JSON shapes"])
    spread = json.dumps(json.loads(asked.last.answer), indent=2)
    assert judge.is_right(asked.last, spread)
    assert not judge.is_right(asked.last, spread[:-1])


def test_a_skill_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no skill flying: there are counting"):
        judge.cases(1, skills=["flying"])


def test_what_the_door_took_apart_is_put_together_again() -> None:
    for conversation in judge.cases(10, skills=["tools", "arithmetic, thinking", "spelling"]):
        right = conversation.last
        reply = as_openai([right.reply()])[0]
        assert judge.is_right(right, as_written({**reply, "reasoning_content": right.plan}))
        assert judge.is_right(right, as_written({**reply, "content": right.answer or None}))


async def test_answers_come_back_in_order_and_no_more_are_asked_for_at_once_than_allowed() -> None:
    asked = judge.cases(3)
    at_once, most = 0, 0

    async def generate(messages: Sequence[Message], tools: Sequence[Tool], thinking: bool) -> str:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.lowlevel.checkpoint()
        at_once -= 1
        return str(messages[-1]["content"])

    answers = await collect(asked, generate, 4)
    assert answers == [str(c.messages[-1]["content"]) for c in asked]
    assert most == 4
