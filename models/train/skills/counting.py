"""Counting from A to B in steps, up or down: up to 500 numbers and 2,000 tokens, so a long stream can be watched."""

from typing import NamedTuple

from models.train.examples import Exchange, asked
from models.train.phrasing import PHRASES, dress
from models.train.source import Source

MOST_NUMBERS = 500
MOST_TOKENS = 2000

TO = PHRASES["counting"]["to"]
UP = PHRASES["counting"]["up"]
DOWN = PHRASES["counting"]["down"]
BY_UP, BY_DOWN = PHRASES["counting"]["by_up"], PHRASES["counting"]["by_down"]
EITHER = [phrase for phrase in UP if phrase in DOWN]
"""These do not say the direction: the numbers do."""
STEPS = PHRASES["counting"]["steps"]
PARITY = PHRASES["counting"]["parity"]
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


class Count(NamedTuple):
    """From `first` towards `last`, by `step`; down when `last` is less."""

    first: int
    last: int
    step: int

    def numbers(self) -> range:
        """Return the numbers to be said."""
        return (
            range(self.first, self.last + 1, self.step)
            if self.last >= self.first
            else range(self.first, self.last - 1, -self.step)
        )


def make(source: Source) -> Exchange:
    """Make a request to count."""
    if source.drill(0.35):
        return exchange(source, source.fresh(lambda: _hard(source), _key), source.pick(EITHER))
    return exchange(source, source.fresh(lambda: _draw(source), _key))


def exchange(source: Source, count: Count, phrase: str = "") -> Exchange:
    """Ask for this count in some person's words, or by this phrase."""
    first, last, step = count
    down = last < first
    if phrase:
        ask = phrase
    elif down:
        ask = source.pick(DOWN)
        if last == 1 and source.chance(0.1):
            ask = "Count down from {a}."
    elif first == 1 and source.chance(0.5):
        ask = source.pick(TO)
    else:
        ask = source.pick(UP)
    if step > 1 or source.chance(0.05):
        ending = "." if ask.endswith(".") else ""
        ask = ask.removesuffix(".") + source.pick(STEPS) + ending
    if step > 1 and not phrase and source.chance(0.25):
        ask = source.pick(BY_DOWN if down else BY_UP)
    if step == 2 and not down and source.chance(0.3):
        ask = source.pick(PARITY).replace("{p}", "odd" if first % 2 else "even")
    said = _spelled if max(first, last, step) <= 100 and source.chance(0.15) else str
    text = dress(source, ask.format(a=said(first), b=said(last), k=said(step)), tail=True)
    plan = f"Count {'down ' if down else ''}from {first} to {last} in steps of {step}."
    return Exchange("counting", _key(count), asked(text), ", ".join(map(str, count.numbers())), plan)


def _spelled(number: int) -> str:
    if number < 20:
        return SMALL[number]
    if number == 100:
        return "one hundred"
    return TENS[number // 10 - 2] + (f"-{SMALL[number % 10]}" if number % 10 else "")


def _key(count: Count) -> str:
    return f"count {count.first} {count.last} {count.step}"


def _draw(source: Source) -> Count:
    while True:
        amount = source.length(2, MOST_NUMBERS if source.chance(0.7) else 30)
        step = (
            1
            if source.chance(0.5)
            else source.pick([2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 12, 15, 20, 25, 50, 100, source.number(2, 99)])
        )
        low = source.pick(
            [
                1,
                1,
                1,
                0,
                source.number(2, 99),
                source.number(2, 99),
                source.number(100, 999),
                source.number(0, 2000),
                source.number(1000, 9999),
            ]
        )
        high = low + step * (amount - 1)
        if high > 9999:
            continue
        if source.chance(0.25):
            return _bounded(
                Count(high, low if step == 1 or source.chance(0.6) else max(0, low - source.number(0, step - 1)), step)
            ) or _draw(source)
        if source.chance(0.25) and high > 50:
            high = round(high, -1 if high < 500 else -2)
        elif step > 1 and source.chance(0.4):
            high += source.number(0, step - 1)
        if low < high <= 9999 and (count := _bounded(Count(low, high, step))):
            return count


def _hard(source: Source) -> Count:
    """Draw a count, mostly short, whose direction only the numbers tell or whose step does not meet its end."""
    while True:
        step = 1 if source.chance(0.5) else source.number(2, 12) if source.chance(0.6) else source.number(2, 120)
        first = source.number(0, 10 ** source.pick([2, 3, 4, 4]) - 1)
        way = source.length(1, 30 if source.chance(0.7) else MOST_NUMBERS) * step
        way += source.number(0, step - 1) if source.chance(0.5) else 0
        last = first + (way if source.chance(0.5) else -way)
        if 0 <= last <= 9999 and (count := _bounded(Count(first, last, step))):
            return count


def _bounded(count: Count) -> Count | None:
    numbers = count.numbers()
    if not 2 <= len(numbers) <= MOST_NUMBERS:
        return None
    tokens = sum(len(str(number)) for number in numbers) + len(numbers)
    return count if tokens <= MOST_TOKENS else None
