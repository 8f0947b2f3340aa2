"""What the model is trained on: how often each skill comes, with which system prompt, after which earlier turns."""

import re
from collections.abc import Callable
from typing import NamedTuple

from models.train.examples import Conversation, Exchange, Message, Tool
from models.train.phrasing import PHRASES
from models.train.skills import arithmetic, copying, counting, shapes, talk, tools, words
from models.train.source import Source

SYSTEMS = PHRASES["systems"]["said"]
TOOL_SKILLS = ("tools", "tool results")


class Skill(NamedTuple):
    """A row of the accuracy table: its maker, how often it comes, and whether thinking is fixed."""

    make: Callable[[Source], Exchange]
    share: float
    """Of the earlier requests of a conversation."""
    trained: float
    """Of the training conversations: what is hard to learn comes more often."""
    thinking: bool | None = None


SKILLS: dict[str, Skill] = {
    "counting": Skill(counting.make, 18, 24),
    "spelling": Skill(words.spell, 8, 9),
    "reversing": Skill(words.reverse, 11, 10),
    "sorting": Skill(words.sort, 13, 16),
    "arithmetic, thinking": Skill(arithmetic.make, 8, 6, True),
    "arithmetic, direct": Skill(arithmetic.make, 9, 9, False),
    "tools": Skill(tools.make, 18, 19),
    "tool results": Skill(tools.make_result, 3, 3),
    "JSON shapes": Skill(shapes.make, 8, 10),
    "copying": Skill(copying.make, 6, 12),
    "greetings": Skill(talk.greet, 3, 3),
    "glossary": Skill(talk.explain, 4, 4),
    "not known": Skill(talk.shrug, 6, 5),
}
NAMES, SHARES = list(SKILLS), [skill.share for skill in SKILLS.values()]
TRAINED = [skill.trained for skill in SKILLS.values()]


def draw(source: Source) -> Conversation:
    """Draw a conversation of the training mixture."""
    return conversation(source, source.rng.choices(NAMES, TRAINED)[0])


def conversation(source: Source, name: str, *, turns: int | None = None) -> Conversation:
    """Draw a conversation that ends in this skill. `turns` fixes how many earlier requests there are (mostly none)."""
    skill = SKILLS[name]
    last = skill.make(source)
    earlier = turns if turns is not None else source.pick([1, 1, 2, 3]) if source.chance(0.15) else 0
    offered: tuple[Tool, ...] = last.tools
    before: list[Message] = []
    for _ in range(earlier):
        exchange = SKILLS[source.rng.choices(NAMES, SHARES)[0]].make(source)
        if len(exchange.answer) > 1500:
            continue
        if exchange.tools and not offered and not before and name != "not known":
            offered = exchange.tools
        if exchange.tools and exchange.tools != offered:
            continue
        before += [*exchange.messages, exchange.reply()]
    if not offered and source.chance(0.06):
        offered = tools.some_tools(source, source.number(1, 3))
    if name not in TOOL_SKILLS and _might_serve(last, offered):
        offered = ()
    system: list[Message] = []
    if source.chance(0.3):
        said = (
            source.pick(SYSTEMS)
            if source.chance(0.7)
            else f"You are {source.pick(['a', 'the', 'my'])} {source.phrase(1, 4)}."
        )
        system = [{"role": "system", "content": said}]
    thinking = skill.thinking if skill.thinking is not None else source.chance(0.5)
    return Conversation(name, (*system, *before, *last.messages), offered, thinking, last)


def _might_serve(exchange: Exchange, offered: tuple[Tool, ...]) -> bool:
    request = str(exchange.messages[-1]["content"])
    if re.search(r"\d", request) and exchange.skill in ("arithmetic", "not known"):
        if any(tool["function"]["name"] in tools.SUMS for tool in offered):
            return True
    if exchange.skill != "not known":
        return False
    asked = set(request.lower().replace("?", " ").replace(".", " ").split())
    about = " ".join(f"{tool['function']['name']} {tool['function'].get('description', '')}" for tool in offered)
    served = set(about.lower().replace("_", " ").replace(".", " ").split()) - {
        "the",
        "a",
        "in",
        "of",
        "an",
        "is",
        "to",
        "and",
    }
    return bool(asked & served)
