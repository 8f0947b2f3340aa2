"""Requests as clients write them onto the one form that the processor works on, checked to the last token.

What an engine must never be given is refused here: a token id outside the vocabulary would kill it.
"""

from functools import partial
from typing import Any, Final

import msgspec

from actors.processor import explain, grammars, parsers
from actors.processor.choices import choice_id
from actors.processor.continuing import why_not_continued
from actors.processor.detokenize import Pieces
from actors.processor.facts import Facts
from actors.processor.journal import Asked
from actors.processor.logprobs import Names
from actors.processor.output import Output
from actors.processor.parsers import forced
from actors.processor.parsers.parser import Parser
from actors.processor.refusal import RefusalError
from actors.processor.shapes import Shapes
from actors.processor.stops import MOST_CHARACTERS
from actors.processor.template import Template
from actors.processor.tokenizer import Tokenizer
from messages import codec
from messages.config import Model
from messages.embed import Embed
from messages.ids import check_request_id, new_request_id
from messages.submit import MOST_CHOICES, SCHEMA, Chat, Completion, Generate, Message, NamedTool
from messages.submit import Asked as Body
from messages.work import Conversation, Sampling

LONG: Final = 2_000
"""Characters from which a prompt is prepared in a thread: they take as long as some ten small requests."""

KINDS: Final[dict[str, type[Body]]] = {"chat": Chat, "completion": Completion, "generate": Generate}


class Prompt(msgspec.Struct):
    """One prompt of a request: its token ids, the text that was rendered for it, and what an echo says.

    Where the engine renders it, it is a `chat` with no ids, of so many bytes.
    """

    ids: list[int]
    rendered: str = ""
    echo: str = ""
    chat: Conversation | None = None
    chat_bytes: int = 0


class Intake:
    """The checks of one model. `context_length` and `vocab_size` may become smaller as engines register.

    `grammars` says whether the engines have them, None while no engine has registered.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, template: Template) -> None:
        self._know(model, tokenizer)
        self._tokenizer = tokenizer
        self._template = template
        self._pieces: Pieces | None = tokenizer.pieces
        self.vocab_size: int = tokenizer.vocab_size or tokenizer.size
        self.grammars: bool | None = None if model.engine == "sglang" and model.engine_tokenizer else False

    def _know(self, model: Model, facts: Tokenizer | Facts) -> None:
        self._model = model
        self._limits = model.limits
        self.context_length = model.context_length or facts.context_length
        self._eos = facts.eos
        self._defaults = Sampling(max_tokens=1, **_known(facts.sampling))
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

    def name(self, body: Body | Embed) -> None:
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
        if body.regex is not None or body.ebnf is not None:
            return True
        if isinstance(body, Chat | Completion | Generate) and body.response_format is not None:
            return True
        if isinstance(body, Completion):
            if isinstance(body.prompt, str):
                return len(body.prompt) > LONG
            return sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str)) > LONG
        if isinstance(body, Chat):
            return sum(_length(message) for message in body.messages) > LONG or len(body.messages) > 50
        return False

    # From a body to what is worked on.

    def prepare(self, body: Body) -> list[Asked]:
        """Make the prompts and check everything; may run in a thread. Raises RefusalError 400.

        What comes back is one for each choice: those of the first prompt, then those of the second, and so on.
        """
        where = "token_ids" if isinstance(body, Generate) else "messages" if isinstance(body, Chat) else "prompt"
        grammar = self._grammar(body)
        prompts = self._prompts(body, where, held=grammar is not None)
        each = _each(body)
        count = len(prompts) * each
        if count > MOST_CHOICES:
            message = (
                f"{where}: {len(prompts)} prompts with {each} choices each are {count}; at most {MOST_CHOICES} are"
            )
            raise RefusalError(400, f"{message} taken", param=where)
        asked_tokens = body.max_tokens
        if isinstance(body, Chat) and asked_tokens is None:
            asked_tokens = body.max_completion_tokens
        bias = self._bias(body.logit_bias or {})
        self._check_ids(body.stop_token_ids or [], "stop_token_ids")
        stops = _stops(body.stop)
        logprobs = _logprobs(body)
        made: list[Asked] = []
        for number, prompt in enumerate(prompts):
            place = where if len(prompts) == 1 else f"{where}[{number}]"
            self._check_ids(prompt.ids, place)
            sampling = self._sampling(body, self._room(prompt.ids, asked_tokens, place))
            sampling.logit_bias = bias
            sampling.logprobs = logprobs
            sampling.prompt_logprobs = isinstance(body, Completion) and body.echo and logprobs is not None
            if grammar is not None:
                setattr(sampling, grammar.kind, grammar.text)
            for _ in range(each):
                made.append(self._asked(body, prompt, sampling, stops, len(made) if count > 1 else None))
        if body.resume is not None:
            self._resume(body, made)
        return made

    def _asked(self, body: Body, prompt: Prompt, sampling: Sampling, stops: list[str], choice: int | None) -> Asked:
        """Make what is asked for one choice: `choice` is its number, None where there is one only."""
        if choice and sampling.seed is not None:
            seed = (sampling.seed + choice + (1 << 63)) % (1 << 64) - (1 << 63)
            sampling = msgspec.structs.replace(sampling, seed=seed)
        asked = Asked(
            id=body.id if choice is None else choice_id(body.id, choice),
            kind="chat" if isinstance(body, Chat) else "completion" if isinstance(body, Completion) else "generate",
            prompt=prompt.ids,
            sampling=sampling,
            ttl=min(body.timeout or self._limits.timeout, self._limits.timeout),
            echo=prompt.echo,
            names=self._names(body) if sampling.logprobs is not None else None,
            # Calls that a grammar forces are counted by the grammar.
            one_call=isinstance(body, Chat) and body.parallel_tool_calls is False and sampling.grammar is None,
        )
        if isinstance(body, Chat) and prompt.chat is None:
            asked.parser = self._parser(body, prompt.rendered, sampling)
        elif isinstance(body, Chat):
            asked.chat, asked.chat_bytes = prompt.chat, prompt.chat_bytes
            asked.parse = partial(self._parser, body, sampling=sampling)
        if stops or not isinstance(body, Generate):
            asked.output = Output(self._pieces, skip_special=body.skip_special_tokens, stops=stops)
        return asked

    def _names(self, body: Body) -> Names:
        return Names(self._tokenizer.pieces, skip_special=body.skip_special_tokens and not isinstance(body, Generate))

    def _prompts(self, body: Body, where: str, *, held: bool) -> list[Prompt]:
        if isinstance(body, Chat):
            rendered = self._render(body, held=held)
            return [Prompt(self._encode(rendered, special=False, where=where), rendered)]
        if isinstance(body, Generate):
            return [Prompt(body.token_ids)]
        assert isinstance(body, Completion)
        return [self._prompt(body, text, at) for text, at in _several(body.prompt)]

    def _prompt(self, body: Completion, given: str | list[int], where: str) -> Prompt:
        if isinstance(given, list):
            self._check_ids(given, where)
            if not body.echo:
                return Prompt(given)
            stream = self._tokenizer.pieces.stream(skip_special=body.skip_special_tokens)
            return Prompt(given, echo=stream.push(given) + stream.finish())
        if not given:
            raise RefusalError(400, f"{where}: empty; it needs at least one character", param=where)
        return Prompt(self._encode(given, special=True, where=where), echo=given if body.echo else "")

    def _parser(self, body: Chat, rendered: str, sampling: Sampling) -> Parser | None:
        """Make what reads one choice's text. A grammar's text is the answer from its first character on."""
        if isinstance(body.tool_choice, NamedTool):
            return forced.Named(body.tool_choice.function.name)
        if body.tool_choice == "required":
            return forced.Required()
        reasoning = self._model.reasoning_parser if sampling.grammar is None else None
        return parsers.make(reasoning, self._model.tool_call_parser if tools_of(body) else None, rendered)

    def _grammar(self, body: Body) -> grammars.Grammar | None:
        grammar = grammars.asked(body)
        if grammar is None or self.grammars is not False:
            return grammar
        if self._model.engine != "sglang":
            why = f"the {self._model.engine} engine has no grammars"
        elif not self._model.engine_tokenizer:
            why = "grammars need the engine's own tokenizer, which is off (engine_tokenizer: false)"
        else:
            why = "its engines run without grammars (args.grammar_backend)"
        raise RefusalError(400, f"{grammar.field}: cannot be had of {self._model.name!r}: {why}", param=grammar.field)

    def _bias(self, given: dict[str, float]) -> dict[int, float]:
        made = {}
        for name, bias in given.items():
            if not (name.isascii() and name.isdigit()):
                raise RefusalError(400, f"logit_bias: {name[:64]!r} is no token id", param="logit_bias")
            if (at := int(name[:12])) >= self.vocab_size:
                message = f"logit_bias: token id {name[:64]} is outside the vocabulary of {self.vocab_size}"
                raise RefusalError(400, message, param="logit_bias")
            made[at] = bias
        return made

    def _render(self, body: Chat, *, held: bool) -> str:
        """Render a conversation. An answer `held` to a grammar begins at once: the template is told not to think."""
        messages = [as_template_has_it(message, at, self._template.shapes) for at, message in enumerate(body.messages)]
        if self._template.text is None or "developer" not in self._template.text:
            for message in messages:
                if message["role"] == "developer":
                    message["role"] = "system"
        extra: dict[str, Any] = {"enable_thinking": False} if held else {}
        if body.reasoning_effort is not None:
            extra["reasoning_effort"] = body.reasoning_effort
        messages = [parsers.recalled(self._model.reasoning_parser, message) for message in messages]
        tools = parsers.described(self._model.reasoning_parser, tools_of(body))
        prompt = self._template.render(messages, tools=tools, extra=extra | (body.chat_template_kwargs or {}))
        return prompt + parsers.opening(self._model.reasoning_parser, prompt) if held else prompt

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
        ends = [] if body.ignore_eos else self._eos
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
            seed=body.seed,
        )

    def _resume(self, body: Body, made: list[Asked]) -> None:
        """Take over what the client has received of each choice."""
        assert body.resume is not None
        several = [body.resume.token_ids] if len(made) == 1 else body.resume.choices or [[] for _ in made]
        where = "resume.token_ids" if len(made) == 1 else "resume.choices"
        if len(several) != len(made):
            raise RefusalError(400, f"{where}: {len(several)} of them, for {len(made)} choices", param=where)
        for asked, received in zip(made, several, strict=True):
            self._check_ids(received, where)
            if len(received) > (most := asked.sampling.max_tokens):
                message = f"{where}: {len(received)} tokens are more than the {most} that may come"
                raise RefusalError(400, message, param=where)
            if received and (why := why_not_continued(asked.sampling)) is not None:
                raise RefusalError(500, f"a processor failed on this request, and {why}", param="resume")
            asked.before = body.resume.attempt
            asked.received = received


def too_large(size: int, limit: int) -> RefusalError:
    """Make the refusal of a body over the limit."""
    return RefusalError(413, f"the body has {size} bytes; at most {limit} are taken")


def _known(sampling: dict[str, Any]) -> dict[str, Any]:
    """Keep of generation_config.json what is a number; to Python, true and false are numbers as well."""
    return {
        name: value
        for name, value in sampling.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _each(body: Body) -> int:
    """Say how many choices each prompt of a body gets."""
    if not isinstance(body, Chat | Completion | Generate):
        return 1
    each = body.n or 1
    if isinstance(body, Completion) and body.best_of not in (None, each):
        message = f"best_of: {body.best_of} is not n, which is {each}; choosing the best of more cannot be had"
        raise RefusalError(400, message, param="best_of")
    return each


def _logprobs(body: Body) -> int | None:
    """Say how many of the likeliest tokens are asked for beside each that comes; None if no log-probabilities are."""
    if isinstance(body, Chat):
        if body.top_logprobs and not body.logprobs:
            raise RefusalError(400, "top_logprobs: goes with logprobs: true only", param="top_logprobs")
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, Completion | Generate) else None


def _several(prompt: str | list[Any]) -> list[tuple[str | list[int], str]]:
    """Tell the prompts of a completion apart, each with its place: texts, or lists of token ids, or one of either."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        if at := next(
            (at for at, part in enumerate(prompt) if isinstance(prompt, list) and not isinstance(part, int)), 0
        ):
            raise RefusalError(400, f"prompt[{at}]: not a token id, as those before it are", param=f"prompt[{at}]")
        return [(prompt, "prompt")]
    kind = type(prompt[0])
    if at := next((at for at, part in enumerate(prompt) if not isinstance(part, kind)), 0):
        what = "text" if kind is str else "list of token ids"
        raise RefusalError(400, f"prompt[{at}]: not a {what}, as those before it are", param=f"prompt[{at}]")
    if len(prompt) > MOST_CHOICES:
        raise RefusalError(400, f"prompt: {len(prompt)} prompts; at most {MOST_CHOICES} are taken", param="prompt")
    return [(part, f"prompt[{at}]" if len(prompt) > 1 else "prompt") for at, part in enumerate(prompt)]


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    for text in stops:
        if not text:
            raise RefusalError(400, "stop: an empty string stops everything; leave it out", param="stop")
        if len(text) > MOST_CHARACTERS:
            message = f"stop: a stop string of {len(text)} characters; at most {MOST_CHARACTERS} are taken"
            raise RefusalError(400, message, param="stop")
    return stops


def tools_of(body: Chat) -> list[dict[str, Any]] | None:
    """Give the tools of a chat as templates take them, or None if it may call none."""
    if not body.tools or body.tool_choice == "none":
        return None
    # Models know tools with the type in front: the other way round, a small one takes "type" for an argument.
    return [{"type": tool.type, "function": msgspec.to_builtins(tool.function)} for tool in body.tools]


def _length(message: Message) -> int:
    content = message.content
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content or [])


def as_template_has_it(message: Message, at: int, shapes: Shapes) -> dict[str, Any]:
    """Make of a message the dict that the template takes, content and arguments in the shapes it wants.

    Raises RefusalError 400 for a message without content, and for arguments that are no JSON.
    """
    if message.content is None and not message.tool_calls:
        raise RefusalError(400, f"messages[{at}].content: missing", param=f"messages[{at}].content")
    content = shapes.content(msgspec.to_builtins(message.content or ""))
    if message.tool_calls is None:
        plain: dict[str, Any] = {"role": message.role, "content": content}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(message, name)) is not None:
                plain[name] = value
        return plain
    made: dict[str, Any] = msgspec.to_builtins(message)
    made["content"] = content
    for number, call in enumerate(made["tool_calls"]):
        arguments = call["function"].get("arguments") or "{}"
        try:
            read = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            where = f"messages[{at}].tool_calls[{number}].function.arguments"
            raise RefusalError(400, f"{where}: not JSON", param=where) from None
        call["function"]["arguments"] = read if shapes.objects else arguments
    return made
