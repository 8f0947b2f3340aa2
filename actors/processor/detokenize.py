"""Token ids to text, piece by piece: never half a character, whatever the cuts, at well under a microsecond a token.

Nearly every tokenizer for generation writes bytes: byte-level BPE maps each to a letter, SentencePiece falls back on
tokens such as `<0xE2>`. So the text of a stream is its tokens' bytes put together and read as UTF-8, where what may
yet become a character waits for its other bytes. What is no UTF-8 becomes U+FFFD, one for each wrong beginning.
"""

import re
from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from tokenizers import Tokenizer as Coder

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
WINDOW: Final = 16


class Detokenizer(Protocol):
    """Turns one stream's ids into text; what `push` returned before never changes."""

    def push(self, ids: list[int]) -> str:
        """Take the next ids and return the text that is certain now."""

    def finish(self) -> str:
        """Return what was held back, there being nothing to come."""


class Pieces:
    """What each id of one tokenizer says, made once; `shown` leaves the `special` tokens out, `whole` has them too.

    Both are None for a tokenizer whose text is not its tokens' bytes put together (WordPiece and the like).
    """

    def __init__(self, coder: Coder, whole: list[bytes] | None, special: set[int]) -> None:
        self._coder = coder
        self.whole = whole
        self.special = special
        self.shown = whole and [b"" if at in special else piece for at, piece in enumerate(whole)]

    @classmethod
    def of(
        cls, coder: Coder, decoder: dict[str, Any] | None, size: int, marks: frozenset[str] = frozenset()
    ) -> "Pieces":
        """Make the table of a tokenizer by the `decoder` of its file, for ids below `size`.

        `marks` are tokens that are shown in any case, because somebody reads them in the text.
        """
        steps = _steps(decoder)
        kinds = {step.get("type") for step in steps}
        added = coder.get_added_tokens_decoder()
        special = {at for at, token in added.items() if token.special and token.content not in marks}
        if not kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
            return cls(coder, None, special)
        replaced = [_replacement(step) for step in steps if step.get("type") in {"Replace", "Metaspace"}]
        letters = _letters() if "ByteLevel" in kinds else None
        whole = []
        for at in range(size):
            token = coder.id_to_token(at) or ""
            whole.append(_by_letters(token, letters) if letters else _by_fallback(token, replaced))
        return cls(coder, whole, special)

    def of_token(self, at: int) -> bytes:
        """Return what one id says by itself; nothing for an id without a token."""
        if self.whole is not None:
            return self.whole[at] if at < len(self.whole) else b""
        text: str = self._coder.decode([at], skip_special_tokens=False)
        return text.encode("utf-8", "replace")

    def stream(self, *, skip_special: bool = True) -> Detokenizer:
        """Begin a stream."""
        table = self.shown if skip_special else self.whole
        if table is not None:
            return ByBytes(table)
        return ByWindow(partial(self._coder.decode, skip_special_tokens=skip_special))


class ByBytes:
    """A stream of a tokenizer that writes bytes."""

    __slots__ = ("_held", "_table")

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._held = b""

    def push(self, ids: list[int]) -> str:
        """Take the next ids and return the text that is certain now; ids that have no token say nothing."""
        try:
            data = self._table[ids[0]] if len(ids) == 1 else b"".join([self._table[at] for at in ids])
        except IndexError:
            data = b"".join([self._table[at] for at in ids if at < len(self._table)])
        if self._held:
            data = self._held + data
        text, read = utf_8_decode(data, "replace", False)
        self._held = data[read:] if read != len(data) else b""
        return text

    def finish(self) -> str:
        """Return what was held back, as U+FFFD if it never became a character."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")


class ByWindow:
    """A stream of any other tokenizer: decodes the last ids with and without the newest and takes the difference.

    `before` are ids that stand before it: what a first token says may depend on there being any.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before[-WINDOW:])
        self._told = len(self._ids)

    def push(self, ids: list[int]) -> str:
        """Take the next ids one by one and return the text that is certain now."""
        return "".join([self._one(at) for at in ids])

    def finish(self) -> str:
        """Return what was held back."""
        return self._rest()

    def _one(self, at: int) -> str:
        self._ids.append(at)
        text = self._decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) - self._told < WINDOW:
            return ""
        return self._rest()

    def _rest(self) -> str:
        before = self._decode(self._ids[: self._told])
        after = self._decode(self._ids)
        self._ids = self._ids[-WINDOW:] if len(self._ids) > 2 * WINDOW else self._ids
        self._told = len(self._ids)
        return after[len(before) :]


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [inner for step in decoder.get("decoders", []) for inner in _steps(step)]
    return [decoder]


def _replacement(step: dict[str, Any]) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step.get("replacement", "\u2581"), " "
    return step.get("pattern", {}).get("String", ""), step.get("content", "")


def _letters() -> dict[str, int]:
    """Map the letters of byte-level BPE to the bytes they stand for: GPT-2's `bytes_to_unicode`, turned round."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(at): at for at in plain}
    return letters | {chr(256 + n): at for n, at in enumerate(sorted(set(range(256)) - set(plain)))}


def _by_letters(token: str, letters: dict[str, int]) -> bytes:
    try:
        return bytes([letters[letter] for letter in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def _by_fallback(token: str, replaced: list[tuple[str, str]]) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    for old, new in replaced:
        if old:
            token = token.replace(old, new)
    return token.encode("utf-8", "replace")
