"""Requests as clients write them onto the one form that the processor works on, checked to the last token.

What an engine must never be given is refused here: a token id outside the vocabulary would kill it.
"""

from typing import Any, Final

import msgspec

from actors.processor import explain, parsers
from actors.processor.continuing import why_not_continued
from actors.processor.journal import Asked
from actors.processor.output import Output
from actors.processor.refusal import RefusalError
from actors.processor.stops import MOST_CHARACTERS
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages import codec
from messages.config import Model
from messages.ids import check_request_id, new_request_id
from messages.submit import SCHEMA, Chat, Completion, Generate, Message, TextPart
from messages.submit import Asked as Body
from messages.work import Sampling

LONG: Final = 2_000
"""Characters from which a prompt is prepared in a thread: they take as long as some ten small requests."""

KINDS: Final[dict[str, type[Body]]] = {"chat": Chat, "completion": Completion, "generate": Generate}


class Intake:
    """The checks of one model. `context_length` and `vocab_size` may become smaller as engines register."""

    def __init__(self, model: Model, tokenizer: Tokenizer, template: Template) -> None:
        self._model = model
        self._limits = model.limits
        self._tokenizer = tokenizer
        self._template = template
        self.context_length = model.context_length or tokenizer.context_length
        self.vocab_size = tokenizer.vocab_size or tokenizer.size
        self._defaults = Sampling(max_tokens=1, **_known(tokenizer.sampling))
        parsers.check(model.reasoning_parser, model.tool_call_parser)

    # From bytes to a body.

    def read(self, data: bytes, kind: str, content_type: str) -> Body:
        """Read a body of a kind. Raises RefusalError 400 or 413."""
        if len(data) > self._limits.body_bytes:
            raise too_large(len(data), self._limits.body_bytes)
        wanted = KINDS.get(kind)
        if wanted is None:
            raise RefusalError(400, f"there is no kind of request {kind!r} here; there are {', '.join(KINDS)}")
        if content_type == codec.JSON:
            form, made = "JSON", codec.from_json
        elif content_type == codec.MSGPACK:
            form, made = "msgpack", codec.from_msgpack
        else:
            raise RefusalError(
                400, f"the content-type {content_type[:64]!r} is neither {codec.JSON} nor {codec.MSGPACK}"
            )
        try:
            return made(data, wanted)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise explain.refusal(error, wanted, form) from None
        except RecursionError:
            raise RefusalError(400, f"the body is not valid {form}: nested too deeply") from None

    def name(self, body: Body) -> None:
        """Check what a body says of itself, and give it an id if it has none. Raises RefusalError 400 or 404."""
        if body.v != SCHEMA:
            raise RefusalError(400, f"v: this is schema version {SCHEMA}, not {body.v}", param="v")
        if body.model and body.model != self._model.name:
            known = self._model.name
            raise RefusalError(404, f"there is no model {body.model[:256]!r} here; there is {known!r}", param="model")
        try:
            body.id = check_request_id(body.id) if body.id else new_request_id()
        except ValueError as error:
            raise RefusalError(400, str(error), param="id") from None

    def is_long(self, body: Body) -> bool:
        """Whether preparing a body takes long enough to keep others waiting."""
        if isinstance(body, Completion):
            return isinstance(body.prompt, str) and len(body.prompt) > LONG
        if isinstance(body, Chat):
            return sum(_length(message) for message in body.messages) > LONG or len(body.messages) > 50
        return False

    # From a body to what is worked on.

    def prepare(self, body: Body) -> Asked:
        """Make the prompt and check everything; may run in a thread. Raises RefusalError 400."""
        parser = None
        if isinstance(body, Chat):
            rendered = self._render(body)
            prompt = self._encode(rendered, special=False, where="messages")
            parser = parsers.make(
                self._model.reasoning_parser, self._model.tool_call_parser if _tools(body) else None, rendered
            )
            asked_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        elif isinstance(body, Completion):
            prompt = self._completion(body)
            asked_tokens = body.max_tokens
        else:
            assert isinstance(body, Generate)
            prompt = body.token_ids
            asked_tokens = body.max_tokens
        where = "token_ids" if isinstance(body, Generate) else "messages" if isinstance(body, Chat) else "prompt"
        self._check_ids(prompt, where)
        most = self._room(prompt, asked_tokens, where)
        stops = _stops(body.stop)
        self._check_ids(body.stop_token_ids or [], "stop_token_ids")
        timeout = min(body.timeout or self._limits.timeout, self._limits.timeout)
        asked = Asked(
            id=body.id,
            kind="chat" if isinstance(body, Chat) else "completion" if isinstance(body, Completion) else "generate",
            prompt=prompt,
            sampling=self._sampling(body, most),
            ttl=timeout,
            parser=parser,
        )
        if stops or not isinstance(body, Generate):
            asked.output = Output(self._tokenizer.pieces, skip_special=body.skip_special_tokens, stops=stops)
        if body.resume is not None:
            self._resume(body, asked)
        return asked

    def _render(self, body: Chat) -> str:
        messages = [_as_template_has_it(message, at) for at, message in enumerate(body.messages)]
        if self._template.text is None or "developer" not in self._template.text:
            for message in messages:
                if message["role"] == "developer":
                    message["role"] = "system"
        if body.tool_choice not in (None, "none", "auto"):
            why = "tool_choice: a call cannot be forced here, for want of grammars; 'auto' and 'none' can be had"
            raise RefusalError(400, why, param="tool_choice")
        return self._template.render(messages, tools=_tools(body), extra=body.chat_template_kwargs)

    def _completion(self, body: Completion) -> list[int]:
        if isinstance(body.prompt, str):
            if not body.prompt:
                raise RefusalError(400, "prompt: empty; it needs at least one character", param="prompt")
            return self._encode(body.prompt, special=True, where="prompt")
        return body.prompt

    def _encode(self, text: str, *, special: bool, where: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, special=special)
        except ValueError as error:
            raise RefusalError(400, f"{where}: {error}", param=where) from None

    def _check_ids(self, ids: list[int], where: str) -> None:
        if ids and max(ids) >= self.vocab_size:
            at, wrong = next((at, value) for at, value in enumerate(ids) if value >= self.vocab_size)
            message = f"{where}[{at}]: token id {wrong} is outside the vocabulary of {self.vocab_size}"
            raise RefusalError(400, message, param=where)

    def _room(self, prompt: list[int], asked: int | None, where: str) -> int:
        """Return how many tokens may come: what was asked, or what the context has left."""
        if not prompt:
            raise RefusalError(400, f"{where}: empty; a prompt needs at least one token", param=where)
        context = self.context_length
        if not context:
            return asked if asked is not None else 16
        if len(prompt) >= context:
            message = f"{where}: a prompt of {len(prompt)} tokens leaves no room in the context of {context}"
            raise RefusalError(400, message, param=where)
        if asked is not None and asked > context:
            message = f"max_tokens: {asked} tokens are more than the whole context of {context}"
            raise RefusalError(400, message, param="max_tokens")
        left = context - len(prompt)
        return left if asked is None else min(asked, left)

    def _sampling(self, body: Body, most: int) -> Sampling:
        defaults = self._defaults
        if body.top_k == 0:
            raise RefusalError(400, "top_k: 0 leaves no token to choose; -1 means all of them", param="top_k")
        if body.min_tokens is not None and body.min_tokens > most:
            message = f"min_tokens: {body.min_tokens} is more than the {most} tokens that may come"
            raise RefusalError(400, message, param="min_tokens")
        ends = [] if body.ignore_eos else self._tokenizer.eos
        return Sampling(
            max_tokens=most,
            temperature=defaults.temperature if body.temperature is None else body.temperature,
            top_p=defaults.top_p if body.top_p is None else body.top_p,
            top_k=defaults.top_k if body.top_k is None else body.top_k,
            min_p=defaults.min_p if body.min_p is None else body.min_p,
            frequency_penalty=body.frequency_penalty or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            repetition_penalty=(
                defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
            ),
            min_tokens=body.min_tokens or 0,
            stop_token_ids=[*ends, *body.stop_token_ids] if body.stop_token_ids else ends,
            ignore_eos=body.ignore_eos,
        )

    def _resume(self, body: Body, asked: Asked) -> None:
        assert body.resume is not None
        received = body.resume.token_ids
        self._check_ids(received, "resume.token_ids")
        if len(received) > (most := asked.sampling.max_tokens):
            message = f"resume.token_ids: {len(received)} tokens are more than the {most} that may come"
            raise RefusalError(400, message, param="resume.token_ids")
        if received and (why := why_not_continued(asked.sampling)) is not None:
            raise RefusalError(500, f"a processor failed on this request, and {why}", param="resume")
        asked.before = body.resume.attempt
        asked.received = received


def too_large(size: int, limit: int) -> RefusalError:
    """Make the refusal of a body over the limit."""
    return RefusalError(413, f"the body has {size} bytes; at most {limit} are taken")


def _known(sampling: dict[str, Any]) -> dict[str, Any]:
    """Keep of generation_config.json what is a number."""
    return {name: value for name, value in sampling.items() if isinstance(value, int | float)}


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    for text in stops:
        if not text:
            raise RefusalError(400, "stop: an empty string stops everything; leave it out", param="stop")
        if len(text) > MOST_CHARACTERS:
            message = f"stop: a stop string of {len(text)} characters; at most {MOST_CHARACTERS} are taken"
            raise RefusalError(400, message, param="stop")
    return stops


def _tools(body: Chat) -> list[dict[str, Any]] | None:
    if not body.tools or body.tool_choice == "none":
        return None
    # Models know tools with the type in front: the other way round, a small one takes "type" for an argument.
    return [{"type": tool.type, "function": msgspec.to_builtins(tool.function)} for tool in body.tools]


def _length(message: Message) -> int:
    content = message.content
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content or [])


def _as_template_has_it(message: Message, at: int) -> dict[str, Any]:
    """Make of a message the dict that templates expect: content as one text, arguments as objects."""
    content = message.content
    if content is None and not message.tool_calls:
        raise RefusalError(400, f"messages[{at}].content: missing", param=f"messages[{at}].content")
    if isinstance(content, list):
        content = "\n".join(part.text for part in content if isinstance(part, TextPart))
    if message.tool_calls is None:
        plain: dict[str, Any] = {"role": message.role, "content": content}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(message, name)) is not None:
                plain[name] = value
        return plain
    made: dict[str, Any] = msgspec.to_builtins(message)
    made["content"] = content or ""
    for number, call in enumerate(made["tool_calls"]):
        arguments = call["function"].get("arguments") or "{}"
        try:
            call["function"]["arguments"] = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            where = f"messages[{at}].tool_calls[{number}].function.arguments"
            raise RefusalError(400, f"{where}: not JSON", param=where) from None
    return made
