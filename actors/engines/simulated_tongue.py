"""A tongue without a tokenizer, for the simulated engine: an id for each word of a chat, a number for each id."""

import json
import zlib
from collections.abc import Sequence

from actors.engines.tongue import Stream
from messages.work import Conversation


class SimulatedTongue:
    """Renders the same chat to the same ids in every process: each word's checksum chooses among `tokens`."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def render(self, chat: Conversation) -> list[int]:
        """Turn a chat into ids, those of its tools and of the template's words before it."""
        words = json.dumps([chat.tools, chat.words], ensure_ascii=False).split()
        for message in chat.messages:
            words += [f"<{message['role']}>", *json.dumps(message, ensure_ascii=False).split()]
        return [self._tokens[zlib.crc32(word.encode("utf-8", "replace")) % len(self._tokens)] for word in words]

    def show(self, ids: list[int]) -> str:
        """Turn ids into text."""
        return "".join(f"{at} " for at in ids)

    def stream(self, before: list[int], chat: Conversation) -> Stream:
        """Begin the text of what comes after a rendered chat."""
        return _Numbers(self)


class _Numbers:
    """A stream of ids that are told as numbers."""

    def __init__(self, tongue: SimulatedTongue) -> None:
        self._tongue = tongue

    def push(self, ids: list[int]) -> str:
        return self._tongue.show(ids)

    def finish(self) -> str:
        return ""
