"""The files beside a model that say how it is spoken to: found, read and checked, with a sentence for what is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from actors import hub

WANTED: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)


class FilesError(Exception):
    """The tokenizer or template cannot be read; the text names the file and says what is wrong with it."""


def find_folder(where: str, progress: Callable[[str], None]) -> Path:
    """Return the folder with `tokenizer.json`, for a folder, the file itself or a Hugging Face id.

    Of an id that is not in the local cache only the small files are downloaded. Raises FilesError, HubError.
    """
    path = Path(where)
    if path.is_file():
        return path.parent
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise FilesError(f"{path}: no tokenizer.json in this folder; give its place with `tokenizer:`")
        return path
    if path.is_absolute() or where.startswith("."):
        raise FilesError(f"{where}: no such file or folder")
    return hub.fetch(where, WANTED, lambda folder: (folder / "tokenizer.json").is_file(), progress)


def read_json(path: Path, *, needed: bool = False) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one unless it is needed. Raises FilesError."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        if needed:
            raise FilesError(f"{path}: no such file") from None
        return {}
    except OSError as error:
        raise FilesError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FilesError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FilesError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value
