"""Requests for embeddings as clients write them onto the one form that is worked on, checked to the last token."""

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from actors.processor import explain
from actors.processor.files import read_json
from actors.processor.intake import LONG, Intake, too_large
from actors.processor.refusal import RefusalError
from actors.processor.tokenizer import Tokenizer
from messages import codec
from messages.config import Model
from messages.embed import Embed

FORMS: Final = "a text, a list of texts, token ids, or a list of lists of token ids"


class Asked(Struct, kw_only=True):
    """A request for embeddings, checked: each input's packed token ids, and how many numbers of each vector are wanted.

    0 `dimensions` are all. `ttl` is in seconds, `before` the attempt that the client has seen already.
    """

    id: str
    inputs: list[bytes]
    dimensions: int
    ttl: float
    before: int = 0


class EmbedIntake:
    """The checks of one embedding model; length and vocabulary are those of the model's other checks (`base`)."""

    def __init__(self, model: Model, tokenizer: Tokenizer, base: Intake) -> None:
        self._limits = model.limits
        self._tokenizer = tokenizer
        self._base = base
        self._lengths = lengths_of(model, read_json(tokenizer.folder / "config.json"))
        self.dimensions = 0
        """How long the vectors are; 0 until an encoder has registered."""

    def read(self, data: bytes, content_type: str) -> Embed:
        """Read a body. Raises RefusalError 400 or 413."""
        if len(data) > self._limits.body_bytes:
            raise too_large(len(data), self._limits.body_bytes)
        if content_type not in (codec.JSON, codec.MSGPACK):
            raise RefusalError(
                400, f"the content-type {content_type[:64]!r} is neither {codec.JSON} nor {codec.MSGPACK}"
            )
        form, made = ("JSON", codec.from_json) if content_type == codec.JSON else ("msgpack", codec.from_msgpack)
        try:
            return made(data, Embed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise explain.refusal(error, Embed, form) from None
        except RecursionError:
            raise RefusalError(400, f"the body is not valid {form}: nested too deeply") from None

    def is_long(self, body: Embed) -> bool:
        """Whether preparing a body takes long enough to keep others waiting."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        return len(texts) > LONG or sum(len(text) for text in texts if isinstance(text, str | list)) > LONG

    def prepare(self, body: Embed) -> Asked:
        """Make token ids of everything and check them; may run in a thread. Raises RefusalError 400 or 413."""
        inputs = self._inputs(body.input)
        return Asked(
            id=body.id,
            inputs=[self._checked(ids, where) for where, ids in inputs],
            dimensions=self._dimensions(body.dimensions),
            ttl=min(body.timeout or self._limits.timeout, self._limits.timeout),
            before=body.resume.attempt if body.resume is not None else 0,
        )

    def _inputs(self, given: str | list[Any]) -> list[tuple[str, list[int]]]:
        """Name each input and make token ids of it."""
        if isinstance(given, str):
            return [("input", self._encoded(given, "input"))]
        if not given:
            raise _wrong("input: empty; it needs at least one text")
        if len(given) > self._limits.inputs and not isinstance(given[0], int):
            message = f"input: {len(given)} inputs are more than the {self._limits.inputs} that one request may have"
            raise RefusalError(413, message, param="input")
        kinds = {type(entry) for entry in given}
        if len(kinds) > 1:
            raise _wrong(f"input: a mixture; it must be {FORMS}")
        if kinds == {int}:
            return [("input", given)]
        named = [(f"input[{at}]", entry) for at, entry in enumerate(given)]
        return named if kinds == {list} else [(where, self._encoded(text, where)) for where, text in named]

    def _encoded(self, text: str, where: str) -> list[int]:
        if not text:
            raise _wrong(f"{where}: empty; it needs at least one character")
        try:
            return self._tokenizer.encode(text, special=True)
        except ValueError as error:
            raise _wrong(f"{where}: {error}") from None

    def _checked(self, ids: list[int], where: str) -> bytes:
        context, vocabulary = self._base.context_length, self._base.vocab_size
        if not ids:
            raise _wrong(f"{where}: empty; it needs at least one token")
        if context and len(ids) >= context:
            raise _wrong(f"{where}: {len(ids)} tokens do not fit in the context of {context}")
        if max(ids) >= vocabulary:
            at, wrong = next((at, value) for at, value in enumerate(ids) if value >= vocabulary)
            raise _wrong(f"{where}[{at}]: token id {wrong} is outside the vocabulary of {vocabulary}")
        return codec.pack_tokens(ids)

    def _dimensions(self, asked: int | None) -> int:
        if asked is None or asked == self.dimensions:
            return 0
        if self.dimensions and asked > self.dimensions:
            raise _wrong(f"dimensions: {asked} are more than the {self.dimensions} that there are", "dimensions")
        if self._lengths == "any":
            return asked
        if self._lengths == "whole":
            whole = f"the {self.dimensions}" if self.dimensions else "all"
            raise _wrong(
                f"dimensions: of this model's vectors the first {asked} numbers alone mean nothing; leave it out to "
                f"have {whole} (`embedding.dimensions` in the configuration can say otherwise)",
                "dimensions",
            )
        if asked not in self._lengths:
            known = ", ".join(map(str, self._lengths))
            raise _wrong(
                f"dimensions: {asked} are not among those that this model's vectors bear: {known}", "dimensions"
            )
        return asked


def lengths_of(model: Model, config: dict[str, Any]) -> list[int] | Literal["any", "whole"]:
    """Say to which lengths a model's vectors may be cut, by the configuration or the model's own config.json."""
    asked = model.embedding.dimensions
    if asked != "auto":
        return asked
    told = config.get("matryoshka_dimensions")
    if isinstance(told, list) and told and all(isinstance(length, int) for length in told):
        return told
    return "any" if config.get("is_matryoshka") is True else "whole"


def _wrong(message: str, param: str = "input") -> RefusalError:
    return RefusalError(400, message, param=param)
