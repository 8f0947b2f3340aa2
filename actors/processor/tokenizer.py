"""Text to token ids, and what a model's files say of its ids, without importing transformers or torch."""

import contextlib
import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer as Coder

from actors.processor.detokenize import Pieces
from actors.processor.facts import Facts
from actors.processor.files import FilesError, find_folder, read_json

log = logging.getLogger("troupe.tokenizer")

SPECIAL_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """One model's tokenizer.

    `vocab_size` counts the ids that the model knows (its embedding's rows; 0 where no file says so), `context_length`
    is in tokens (0: not known), `eos` the ids that end an answer, `special` the named special tokens as templates
    get them, `sampling` the defaults of generation_config.json. `marks` are tokens that detokenising shows in any case.
    Raises FilesError when the files are not usable, HubError when they cannot be downloaded.
    """

    def __init__(
        self, where: str, marks: frozenset[str] = frozenset(), progress: Callable[[str], None] = log.info
    ) -> None:
        self.folder: Path = find_folder(where, progress)
        path = self.folder / "tokenizer.json"
        try:
            self._coder = Coder.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception, and OSError's text for a file that is not there
            raise FilesError(f"{path}: not a tokenizer that `tokenizers` can read: {error}") from None
        self._coder.no_truncation()
        self._coder.no_padding()
        self.settings: dict[str, Any] = read_json(self.folder / "tokenizer_config.json")
        facts = Facts.read(self.folder)
        self.special = _special(self.settings, read_json(self.folder / "special_tokens_map.json"))
        self.size: int = self._coder.get_vocab_size(with_added_tokens=True)
        self.vocab_size = facts.vocab_size
        self.context_length = facts.context_length
        self.eos = self._eos(facts.eos)
        self.sampling = facts.sampling
        self.pieces = Pieces.of(self._coder, _decoder(path), max(self.size, self.vocab_size), marks)
        _give_back()

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Turn text into ids, with the special tokens that the tokenizer puts around a text if `special`.

        Lets go of the interpreter's lock while it works. Raises ValueError for text that is not Unicode.
        """
        try:
            ids: list[int] = self._coder.encode_batch_fast([text], add_special_tokens=special)[0].ids
        except (TypeError, UnicodeEncodeError):
            raise ValueError("the text holds half a surrogate pair, which is not Unicode") from None
        return ids

    def id_of(self, token: str) -> int | None:
        """Return a token's id, or None if there is no such token."""
        found: int | None = self._coder.token_to_id(token)
        return found

    def _eos(self, found: list[int]) -> list[int]:
        named = self.special.get("eos_token")
        if isinstance(named, str) and (known := self.id_of(named)) is not None and known not in found:
            return [*found, known]
        return found


class _File(msgspec.Struct):
    """What we need of tokenizer.json; a large vocabulary is 14 MB that need not become objects."""

    decoder: dict[str, Any] | None = None


def _decoder(path: Path) -> dict[str, Any] | None:
    return msgspec.json.decode(path.read_bytes(), type=_File).decoder


def _give_back() -> None:
    """Give the memory that reading took back to the system: 75 MB of 172 for a vocabulary of 150,000 (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _special(settings: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    special: dict[str, Any] = {}
    for name in SPECIAL_NAMES:
        value = settings.get(name, named.get(name))
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    extra = settings.get("additional_special_tokens", named.get("additional_special_tokens"))
    if isinstance(extra, list):
        special["additional_special_tokens"] = [
            entry.get("content", "") if isinstance(entry, dict) else entry for entry in extra
        ]
    return special
