"""Spelling a word, writing it backwards, and sorting words or turning their order round."""

from models.train.examples import Exchange, asked
from models.train.phrasing import PHRASES, dress
from models.train.source import LEXICON, Source

SPELL = PHRASES["words"]["spell"]
REVERSE = PHRASES["words"]["reverse"]
SORT = PHRASES["words"]["sort"]
TURN = PHRASES["words"]["turn"]
SORT_DOWN = PHRASES["words"]["sort_down"]
SORT_NUMBERS = PHRASES["words"]["sort_numbers"]
SEPARATORS = [", ", ", ", ", ", ", ", " ", "\n", ",", "; "]


def spell(source: Source) -> Exchange:
    """Make a request to spell a word: letters with hyphens between."""
    word = source.fresh(lambda: _any_word(source), _word_key).replace(" ", "")
    text = dress(source, source.pick(SPELL).format(w=_quoted(source, word)), tail=True)
    return Exchange("spelling", _word_key(word), asked(text), "-".join(word), f"Spell {word}.")


def reverse(source: Source) -> Exchange:
    """Make a request to reverse a word, now and then a list of words."""
    if source.chance(0.15):
        return _turned(source)
    word = source.fresh(lambda: _any_word(source), _word_key)
    ask = source.pick(REVERSE).format(w=_quoted(source, word))
    text = ask if ask.startswith(word) else dress(source, ask, tail=True)
    return Exchange("reversing", _word_key(word), asked(text), word[::-1], "-".join(word), letterwise=True)


def sort(source: Source) -> Exchange:
    """Make a request to sort words alphabetically, now and then numbers by size."""
    if source.chance(0.1):
        return _sorted_numbers(source)
    words = source.fresh(lambda: _some_words(source, 10), _list_key)
    if source.chance(0.06):
        text = dress(source, source.pick(SORT_DOWN).format(l=_listed(source, words)))
        downwards = ", ".join(sorted(words, key=str.lower, reverse=True))
        return Exchange("sorting", _list_key(words), asked(text), downwards, f"Sort downwards: {', '.join(words)}")
    text = dress(source, source.pick(SORT).format(l=_listed(source, words)))
    ordered = ", ".join(sorted(words, key=str.lower))
    return Exchange("sorting", _list_key(words), asked(text), ordered, f"Sort: {', '.join(words)}")


def _sorted_numbers(source: Source) -> Exchange:
    size = source.pick([9, 99, 999, 9999])
    drawn = source.fresh(lambda: [str(source.number(0, size)) for _ in range(source.number(2, 8))], _list_key)
    numbers = list(dict.fromkeys(drawn))
    text = dress(source, source.pick(SORT_NUMBERS).format(l=_listed(source, numbers)))
    ordered = ", ".join(sorted(numbers, key=int))
    return Exchange("sorting", _list_key(drawn), asked(text), ordered, f"Sort: {', '.join(numbers)}")


def _turned(source: Source) -> Exchange:
    words = source.fresh(lambda: _some_words(source, 8), _list_key)
    text = dress(source, source.pick(TURN).format(l=_listed(source, words)))
    return Exchange(
        "reversing", _list_key(words), asked(text), ", ".join(words[::-1]), f"Reverse the list: {', '.join(words)}"
    )


def _any_word(source: Source) -> str:
    roll = source.rng.random()
    if roll > 0.97:
        return f"{source.pick(LEXICON)} {source.pick(LEXICON)}"
    word = source.pick(LEXICON) if roll < 0.35 else source.letters() if roll > 0.93 else source.made_up()
    style = source.rng.random()
    return word.capitalize() if style < 0.12 else word.upper() if style < 0.16 else word


def _quoted(source: Source, word: str) -> str:
    return f'"{word}"' if source.chance(0.2) else f"'{word}'" if source.chance(0.05) else word


def _some_words(source: Source, most: int) -> list[str]:
    words: list[str] = []
    first = source.pick("abcdefghijklmnoprstuvw") if source.chance(0.3) else ""
    amount = source.number(2, most)
    while len(words) < amount:
        word = source.pick(LEXICON) if source.chance(0.75) else source.made_up()
        if first and word[0] != first and source.chance(0.7):
            continue
        if word not in words:
            words.append(word)
    if source.chance(0.1):
        words = [word.capitalize() for word in words]
    return words


def _word_key(word: str) -> str:
    return f"word {word.lower().replace(' ', '')}"


def _list_key(words: list[str]) -> str:
    return f"list {' '.join(words).lower()}"


def _listed(source: Source, words: list[str]) -> str:
    separator = source.pick(SEPARATORS)
    if source.chance(0.05):
        return "[" + ", ".join(words) + "]"
    if separator == ", " and len(words) > 1 and source.chance(0.2):
        return ", ".join(words[:-1]) + " and " + words[-1]
    return separator.join(words)
