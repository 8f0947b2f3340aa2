"""Adding and subtracting up to four digits: column by column when thinking is on, at once when it is off."""

from models.train.examples import Exchange, asked
from models.train.phrasing import PHRASES, dress
from models.train.source import Source

PLACES = ["ones", "tens", "hundreds", "thousands", "ten thousands"]
ADD = PHRASES["arithmetic"]["add"]
SUBTRACT = PHRASES["arithmetic"]["subtract"]


def make(source: Source) -> Exchange:
    """Make a sum or a difference."""
    first, second, plus = source.fresh(lambda: _draw(source), _key)
    ask = source.pick(ADD if plus else SUBTRACT)
    text = dress(
        source, ask.format(a=first, b=second), order=ask[0] in "ACSTW" and not ask.startswith("What"), tail=True
    )
    result = first + second if plus else first - second
    plan = f"{first} {'+' if plus else '-'} {second}\n" + (
        add_by_columns(first, second) if plus else subtract_by_columns(first, second)
    )
    return Exchange(
        "arithmetic",
        _key((first, second, plus)),
        asked(text),
        f"{first} {'+' if plus else '-'} {second} = {result}",
        plan,
    )


def add_by_columns(first: int, second: int) -> str:
    """Return the working of a sum, a line a column from the right, as taught at school."""
    lines, carry = [], 0
    for place in range(max(len(str(first)), len(str(second)))):
        one, other = first // 10**place % 10, second // 10**place % 10
        total = one + other + carry
        carried = f" + {carry}" if carry else ""
        lines.append(
            f"{PLACES[place]}: {one} + {other}{carried} = {total}, write {total % 10}"
            + (", carry 1" if total > 9 else "")
        )
        carry = total // 10
    if carry:
        lines.append(f"{PLACES[len(lines)]}: write 1")
    return "\n".join(lines)


def subtract_by_columns(first: int, second: int) -> str:
    """Return the working of a difference, a line a column from the right. A negative one is turned round first."""
    lines = []
    if first < second:
        lines.append(f"{first} is less than {second}: take {second} - {first}, then put a minus")
        first, second = second, first
    borrow = 0
    for place in range(len(str(first))):
        one, other = first // 10**place % 10, second // 10**place % 10
        borrowed = f" - {borrow}" if borrow else ""
        short = one - other - borrow < 0
        digit = (one - other - borrow) % 10
        lines.append(
            f"{PLACES[place]}: {one + 10 if short else one} - {other}{borrowed} = {digit}, write {digit}"
            + (", borrow 1" if short else "")
        )
        borrow = int(short)
    return "\n".join(lines)


def _key(problem: tuple[int, int, bool]) -> str:
    first, second, plus = problem
    return f"arithmetic {first} {'+' if plus else '-'} {second}"


def _draw(source: Source) -> tuple[int, int, bool]:
    sizes = [1, 2, 3, 3, 4, 4, 4, 4]
    first = source.number(0, 10 ** source.pick(sizes) - 1)
    second = source.number(0, 10 ** source.pick(sizes) - 1)
    plus = source.chance(0.5)
    if not plus and first < second and source.chance(0.6):
        first, second = second, first
    return first, second, plus
