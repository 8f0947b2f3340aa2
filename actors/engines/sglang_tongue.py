"""SGLang's own tokenizer as a tongue: whatever class SGLang has loaded for the model, used by what all of them have."""

import logging
from functools import partial
from typing import Any

from actors.engines.engine import ConfigurationError
from actors.engines.tongue import Stream, UnspeakableError
from actors.processor.detokenize import ByWindow
from actors.processor.shapes import shapes
from messages.work import Conversation

log = logging.getLogger("troupe.sglang")


class SglangTongue:
    """One engine's tokenizer. Raises ConfigurationError where it renders no chat."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        template = getattr(tokenizer, "chat_template", None)
        self._knows_developers = isinstance(template, str) and "developer" in template
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self._special: dict[int, str] = {at: token.content for at, token in added.items() if token.special}
        self._why = "it has no template"
        self._shapes = shapes(self._tried)
        if self._tried([self._shapes.whole({"role": "user", "content": "Hi"})]) is None:
            raise ConfigurationError(f"text: SGLang's tokenizer of this model renders no chat: {self._why}")

    def _tried(self, messages: list[dict[str, Any]]) -> str | None:
        try:
            return self.show(self._ids(messages, None, {}))
        except UnspeakableError as error:
            self._why = str(error)
            return None

    def render(self, chat: Conversation) -> list[int]:
        """Render a chat, its messages in the shapes that the template takes."""
        messages = [self._shapes.whole(message) for message in chat.messages]
        if not self._knows_developers:
            messages = [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]
        return self._ids(messages, chat.tools, chat.words)

    def _ids(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, words: dict[str, Any]
    ) -> list[int]:
        ours = {"tools": tools, "tokenize": True, "add_generation_prompt": True, "return_dict": False}
        try:
            return [int(at) for at in self._tokenizer.apply_chat_template(messages, **(words | ours))]
        except Exception as error:  # Templates, and tokenizers of any origin, raise what they like.
            raise UnspeakableError(f"the chat template refuses this: {error or type(error).__name__}") from None

    def show(self, ids: list[int]) -> str:
        """Turn ids into text, special tokens shown."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def stream(self, before: list[int], chat: Conversation) -> Stream:
        """Begin the text of what comes after a rendered chat."""
        hidden = {at for at, token in self._special.items() if token not in chat.marks}
        return ByWindow(partial(self._shown, hidden if chat.skip_special_tokens else set()), before)

    def _shown(self, hidden: set[int], ids: list[int]) -> str:
        return self.show([at for at in ids if at not in hidden])

    def one_word(self) -> list[int]:
        """Tokenise the shortest text worth the name, for a health probe."""
        ids: list[int] = self._tokenizer.encode("Hi")
        return ids
