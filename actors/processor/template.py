"""Conversations to prompts: the model's own chat template, rendered as Hugging Face renders it, in a sandbox."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from actors.processor.files import FilesError, read_json
from actors.processor.refusal import RefusalError
from actors.processor.shapes import Shapes, shapes

OWN_WORDS: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class Template:
    """One model's chat template, compiled once; `text` is None for a model that has none, `shapes` what it takes."""

    def __init__(self, text: str | None, special: dict[str, Any]) -> None:
        self.text = text
        self._special = special
        try:
            self._compiled = _compiled(text) if text is not None else None
        except jinja2.TemplateError as error:
            raise FilesError(f"the chat template is not valid jinja: {error}") from None
        self.shapes = shapes(self._tried) if self._compiled is not None else Shapes()

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any], special: dict[str, Any], given: str | None) -> "Template":
        """Find the template: the file that the configuration names, else the one beside the tokenizer.

        Raises FilesError if the file that is named cannot be read, or the template is not valid.
        """
        return cls(_find(folder, settings, given), special)

    def _tried(self, messages: list[dict[str, Any]]) -> str | None:
        try:
            return self.render(messages)
        except RefusalError:
            return None

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """Render a conversation into the prompt of the assistant's next turn; `extra` are words of the template's own.

        Raises RefusalError 400 with what the template says is wrong with the conversation.
        """
        if self._compiled is None:
            raise RefusalError(
                400,
                "this model has no chat template; send a completion, or configure `chat_template`",
                param="messages",
            )
        words = self._special | {"tools": tools, "documents": None} | (extra or {})
        words |= {"messages": messages, "add_generation_prompt": True}
        try:
            return self._compiled.render(words)
        except jinja2.exceptions.SecurityError as error:
            raise RefusalError(500, f"the chat template does what it must not: {error}") from None
        except jinja2.TemplateError as error:
            raise RefusalError(400, f"the chat template refuses this: {error}", param="messages") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
            message = f"the chat template cannot render this: {type(error).__name__}: {error}"
            raise RefusalError(400, message, param="messages") from None


def _find(folder: Path, settings: dict[str, Any], given: str | None) -> str | None:
    if given is not None:
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FilesError(f"chat_template: {given}: cannot be read: {error}") from None
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    written = settings.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(written, list):
        named = {entry.get("name"): entry.get("template") for entry in written if isinstance(entry, dict)}
        written = named.get("default") or next(iter(named.values()), None)
    return written if isinstance(written, str) else None


class _Generation(jinja2.ext.Extension):
    """The tag `generation`, which marks the assistant's words for training and says nothing here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()


def _compiled(text: str) -> jinja2.Template:
    """Compile a template. Jinja's own words stand in a plain dict: its chain of them takes two fifths of a render."""
    template = _environment().from_string(text)
    template.globals = dict(template.globals)
    return template


def _environment() -> jinja2.Environment:
    """Make the environment of transformers' `apply_chat_template` (utils/chat_template_utils.py)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as people read it: jinja's own filter would escape HTML's letters, and templates were not made so."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
