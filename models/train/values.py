"""Values of every kind that tools and JSON records ask for: as the request has them, and as the answer must."""

from collections.abc import Callable
from typing import NamedTuple

from models.train.source import PROPER, Source

COLORS = (
    "red blue green yellow purple violet pink brown black white grey orange golden silver turquoise crimson".split()
)
CURRENCIES = "EUR USD GBP CHF JPY SEK NOK DKK PLN CZK CAD AUD euros dollars pounds francs yen crowns".split()
LANGUAGES = PROPER[-12:]
COUNTRIES = PROPER[: PROPER.index("Wales") + 1]
ROOMS = [
    "kitchen",
    "bedroom",
    "bathroom",
    "living room",
    "garage",
    "hall",
    "office",
    "cellar",
    "attic",
    "dining room",
    "garden",
]
UNITS = (
    "meters kilometers miles feet inches yards kilograms grams pounds ounces liters gallons celsius fahrenheit".split()
)
ENDINGS = ["com", "org", "net", "de", "io", "example"]
FILE_ENDINGS = ["txt", "md", "py", "log", "json", "csv", "yaml", "pdf"]


class Value(NamedTuple):
    """How a person writes it, and what it is in JSON."""

    text: str
    json: object


def draw(source: Source, kind: str) -> Value:
    """Draw a value of a kind: a name below, `int LOW HIGH`, or choices with a bar between."""
    if kind == "true|false":
        yes = source.chance(0.5)
        return Value(str(yes).lower(), yes)
    if "|" in kind:
        return _same(source.pick(kind.split("|")))
    if kind.startswith("int "):
        low, high = map(int, kind.split()[1:])
        number = source.number(low, high) if low > 0 or source.chance(0.5) else source.length(1, high)
        return Value(str(number), number)
    return KINDS[kind](source)


def _same(text: str) -> Value:
    return Value(text, text)


def _float(source: Source) -> Value:
    if source.chance(0.4):
        number = source.length(1, 9999)
        return Value(str(number), number)
    digits = source.number(1, 2)
    text = f"{source.length(1, 999)}.{source.number(0, 10**digits - 1):0{digits}d}".rstrip("0")
    if text.endswith("."):
        text += "5"
    return Value(text, float(text))


def _date(source: Source) -> Value:
    return _same(f"{source.number(2024, 2032)}-{source.number(1, 12):02d}-{source.number(1, 28):02d}")


def _time(source: Source) -> Value:
    return _same(f"{source.number(0, 23):02d}:{source.pick([0, 15, 30, 45, source.number(0, 59)]):02d}")


def _email(source: Source) -> Value:
    name = source.person().lower() if source.chance(0.6) else source.made_up()
    between = source.pick(["", ".", "_", "-"])
    user = name + between + source.word() if between else name + source.pick(["", str(source.number(1, 99))])
    return _same(f"{user}@{source.word()}.{source.pick(ENDINGS)}")


def _code(source: Source) -> Value:
    letters = "".join(source.pick("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(source.number(1, 4)))
    digits = "".join(source.pick("0123456789") for _ in range(source.number(2, 8)))
    return _same(letters + source.pick(["", "-", "-"]) + digits)


def _path(source: Source) -> Value:
    folders = [source.word() for _ in range(source.number(0, 3))]
    name = source.word() + source.pick(["", "", "_" + source.word(), str(source.number(1, 20))])
    return _same(source.pick(["", "/", "./"]) + "/".join([*folders, f"{name}.{source.pick(FILE_ENDINGS)}"]))


def _host(source: Source) -> Value:
    name = source.word() + source.pick(["", f"-{source.number(1, 20)}", f"{source.number(1, 20)}", f"-{source.word()}"])
    return _same(name + source.pick(["", "", f".{source.word()}.{source.pick(ENDINGS)}"]))


def _address(source: Source) -> Value:
    return _same(
        f"{source.number(1, 200)} {source.word().capitalize()} {source.pick(['Street', 'Road', 'Avenue', 'Lane'])}"
    )


def _text(source: Source) -> Value:
    words = source.phrase(2, 10)
    if source.chance(0.2):
        words += f" {source.number(1, 999)}"
    if source.chance(0.2):
        words = words.replace(" ", ", ", 1)
    return _same(words.capitalize() + source.pick(["", "", ".", "!", "?"]) if source.chance(0.6) else words)


def _proper(source: Source) -> Value:
    return _same(" ".join(source.word().capitalize() for _ in range(source.number(1, 3))))


def _place(source: Source) -> Value:
    return _same(source.city() if source.chance(0.6) else source.value(COUNTRIES))


def _where(source: Source) -> Value:
    city = source.city()
    if source.chance(0.1):
        return _same(f"{city}, {source.pick([*COUNTRIES, _capitals(source, 2)])}")
    return _same(f"{city} {source.city()}" if source.chance(0.08) else city)


def _company(source: Source) -> Value:
    return _same(_capitals(source, source.number(2, 5))) if source.chance(0.35) else _proper(source)


def _capitals(source: Source, amount: int) -> str:
    return "".join(source.pick("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(amount))


def _expression(source: Source) -> Value:
    text = str(source.length(1, 9999))
    for _ in range(source.pick([1, 1, 1, 2, 3])):
        text += f" {source.pick('+-*/')} {source.length(1, 9999)}"
    return _same(text)


def _big(source: Source) -> Value:
    number = source.length(1000, 9_999_999)
    return Value(str(number), number)


def _list(source: Source) -> Value:
    words = [source.word() for _ in range(source.number(2, 4))]
    return Value(", ".join(words[:-1]) + " and " + words[-1], words)


KINDS: dict[str, Callable[[Source], Value]] = {
    "city": _where,
    "place": _place,
    "country": lambda source: _same(source.value(COUNTRIES)),
    "company": _company,
    "expression": _expression,
    "big": _big,
    "person": lambda source: _same(f"{source.person()} {source.person()}" if source.chance(0.2) else source.person()),
    "word": lambda source: _same(source.word()),
    "phrase": lambda source: _same(source.phrase(1, 4)),
    "color": lambda source: _same(source.pick(COLORS)),
    "currency": lambda source: _same(source.pick(CURRENCIES)),
    "language": lambda source: _same(source.pick(LANGUAGES)),
    "room": lambda source: _same(source.pick(ROOMS)),
    "unit": lambda source: _same(source.pick(UNITS)),
    "float": _float,
    "date": _date,
    "time": _time,
    "email": _email,
    "code": _code,
    "path": _path,
    "host": _host,
    "address": _address,
    "text": _text,
    "proper": _proper,
    "list": _list,
}
