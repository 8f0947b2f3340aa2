"""Chats for an engine that has template and tokenizer itself (`text: true`): checked, and handed on as they are.

Whatever counts or names tokens of the prompt is the engine's to say, and what a client may not ask here for want of a
tokenizer is refused with a sentence that says so.
"""

from typing import Final

import msgspec

from actors.processor import grammars, parsers
from actors.processor.facts import Facts
from actors.processor.intake import Intake, Prompt, as_template_has_it, tools_of
from actors.processor.journal import Asked
from actors.processor.refusal import RefusalError
from actors.processor.shapes import Shapes
from messages import codec
from messages.config import Model
from messages.submit import Asked as Body
from messages.submit import Chat
from messages.work import Conversation

AS_WRITTEN: Final = Shapes(parts=True, objects=False)
MOST_TOKENS: Final = (1 << 31) - 1
BECAUSE: Final = "this model's engine alone has its tokenizer (text: true)"


class TextIntake(Intake):
    """The checks of one model with `text: true`. Until engines have registered, sizes may be unknown."""

    def __init__(self, model: Model, facts: Facts) -> None:
        self._know(model, facts)
        self.vocab_size = facts.vocab_size or 1 << 32
        self.grammars = False
        self._pieces = None
        self._marks = sorted(parsers.marks(model.reasoning_parser, model.tool_call_parser))

    def prepare(self, body: Body) -> list[Asked]:
        """Check everything. Raises RefusalError 400, 404, or 500 for a stream that another processor had begun."""
        if not isinstance(body, Chat):
            raise RefusalError(404, f"{self._model.name!r} takes chats only: {BECAUSE}")
        if body.logprobs:
            raise RefusalError(400, f"logprobs: cannot be had: {BECAUSE}", param="logprobs")
        if body.logit_bias:
            raise RefusalError(400, f"logit_bias: cannot be had: {BECAUSE}", param="logit_bias")
        if body.resume is not None and (body.resume.token_ids or any(body.resume.choices or [])):
            message = f"a processor failed on this request, and it cannot be continued by another: {BECAUSE}"
            raise RefusalError(500, message, param="resume")
        return super().prepare(body)

    def _grammar(self, body: Body) -> None:
        if (grammar := grammars.asked(body)) is not None:
            message = f"{grammar.field}: grammars cannot be had of {self._model.name!r}: {BECAUSE}"
            raise RefusalError(400, message, param=grammar.field)

    def _prompts(self, body: Body, where: str, *, held: bool) -> list[Prompt]:
        assert isinstance(body, Chat)
        reasoning = self._model.reasoning_parser
        words = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
        chat = Conversation(
            messages=[
                parsers.recalled(reasoning, as_template_has_it(message, at, AS_WRITTEN))
                for at, message in enumerate(body.messages)
            ],
            tools=parsers.described(reasoning, tools_of(body)),
            words=words | (body.chat_template_kwargs or {}),
            skip_special_tokens=body.skip_special_tokens,
            marks=self._marks,
        )
        try:
            size = len(codec.to_msgpack(chat))
        except (msgspec.EncodeError, UnicodeEncodeError, OverflowError):
            raise RefusalError(400, f"{where}: the text holds half a surrogate pair, which is not Unicode") from None
        return [Prompt([], chat=chat, chat_bytes=size)]

    def _room(self, prompt: list[int], asked: int | None, where: str) -> int:
        """Return how many tokens may come at most; the engine cuts it to what the context has left."""
        context = self.context_length or MOST_TOKENS
        if asked is not None and asked > context:
            message = f"max_tokens: {asked} tokens are more than the whole context of {context}"
            raise RefusalError(400, message, param="max_tokens")
        return context if asked is None else asked
