"""The data makers of troupe-small-chat: right answers, the same ones for a seed, and nothing held out in training."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from models.train import mixture
from models.train.examples import Conversation
from models.train.skills import arithmetic, copying, counting, tools
from models.train.source import LEXICON, Source, is_held_out
from tests.harness import ROOT

MODEL = ROOT / "models" / "troupe-small-chat"
NUMBER = some.integers(0, 9999)


def drawn(skill: str, amount: int, *, held_out: bool) -> list[Conversation]:
    source = Source(f"test {skill}", held_out=held_out)
    return [mixture.conversation(source, skill) for _ in range(amount)]


@pytest.mark.parametrize("skill", mixture.NAMES)
def test_held_out_requests_never_occur_in_training(skill: str) -> None:
    trained, kept = drawn(skill, 1200, held_out=False), drawn(skill, 200, held_out=True)
    assert not {c.last.key for c in trained} & {c.last.key for c in kept}
    assert all(is_held_out(c.last.key) for c in kept)
    assert not any(is_held_out(c.last.key) for c in trained)
    if skill not in ("tools", "tool results"):
        assert not {asked(c) for c in trained} & {asked(c) for c in kept}


def asked(conversation: Conversation) -> str:
    return str(conversation.last.messages[-1]["content"])


def test_training_draws_no_held_out_word_to_copy() -> None:
    kept = {word for word in LEXICON if is_held_out(f"value {word}")}
    source, other = Source("values", held_out=False), Source("values", held_out=True)
    assert len(kept) > 50
    assert not kept & {source.value(LEXICON) for _ in range(5000)}
    assert len(kept & {other.value(LEXICON) for _ in range(5000)}) > 50


@pytest.mark.parametrize("held_out", [False, True])
def test_a_seed_gives_the_same_conversations(held_out: bool) -> None:
    one, other = Source("7", held_out=held_out), Source("7", held_out=held_out)
    assert [mixture.draw(one) for _ in range(50)] == [mixture.draw(other) for _ in range(50)]
    assert mixture.draw(Source("7", held_out=held_out)) != mixture.draw(Source("8", held_out=held_out))


def test_every_skill_comes_with_and_without_thinking_system_prompt_and_earlier_turns() -> None:
    source = Source("variety", held_out=False)
    made = [mixture.draw(source) for _ in range(3000)]
    assert {c.skill for c in made} == set(mixture.NAMES)
    assert {c.thinking for c in made} == {True, False}
    first = {(c.messages[0]["role"], len(c.messages) > 3) for c in made}
    assert first == {("system", True), ("system", False), ("user", True), ("user", False)}


def test_counts_stay_in_bounds_and_reach_500_numbers() -> None:
    source = Source("bounds", held_out=False)
    most = 0
    for _ in range(1500):
        numbers = [int(n) for n in counting.make(source).answer.split(", ")]
        steps = {after - before for before, after in zip(numbers, numbers[1:], strict=False)}
        assert len(steps) == 1, "the step must not change"
        most = max(most, len(numbers))
    assert most > 450
    assert most <= counting.MOST_NUMBERS


@given(NUMBER, NUMBER)
def test_the_columns_of_a_sum_spell_its_result(first: int, second: int) -> None:
    assert written(arithmetic.add_by_columns(first, second)) == first + second


@given(NUMBER, NUMBER)
def test_the_columns_of_a_difference_spell_its_result(first: int, second: int) -> None:
    working = arithmetic.subtract_by_columns(first, second)
    assert written(working) * (-1 if "put a minus" in working else 1) == first - second


def written(working: str) -> int:
    return int("".join(reversed(re.findall(r"write (\d)", working))))


def test_calls_name_an_offered_tool_and_its_parameters() -> None:
    source = Source("calls", held_out=True)
    for _ in range(300):
        made = tools.make(source)
        offered: dict[str, Any] = {tool["function"]["name"]: tool["function"]["parameters"] for tool in made.tools}
        for call in made.calls:
            parameters = offered[call.name]
            assert call.arguments.keys() <= parameters["properties"].keys()
            assert set(parameters.get("required", [])) <= call.arguments.keys()


def test_json_answers_are_json_and_hold_what_the_text_says() -> None:
    for conversation in drawn("JSON shapes", 200, held_out=True):
        for value in json.loads(conversation.last.answer).values():
            if isinstance(value, str):
                assert value in asked(conversation)


def test_no_passage_begins_or_ends_with_a_space_that_the_template_would_strip() -> None:
    source = Source("passages", held_out=False)
    for size in range(2, 120):
        text = copying.passage(source, size)
        assert text == text.strip() != ""
