"""What a model's small files say of its ids and of sampling: all that is known where the engine has the tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from actors import hub
from actors.processor.files import WANTED, FilesError, read_json

SAMPLING_NAMES: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Facts(Struct):
    """Of config.json and generation_config.json: 0 where neither says how large the vocabulary or the context is.

    `eos` are the ids that end an answer, `sampling` the defaults for requests that say nothing.
    """

    vocab_size: int
    context_length: int
    eos: list[int]
    sampling: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Facts":
        """Read a folder's; files that are absent say nothing. Raises FilesError."""
        config = read_json(folder / "config.json")
        generation = read_json(folder / "generation_config.json")
        return cls(
            vocab_size=_number(config, "vocab_size"),
            context_length=_number(config, "max_position_embeddings"),
            eos=_eos(generation, config),
            sampling={name: generation[name] for name in SAMPLING_NAMES if generation.get(name) is not None},
        )

    @classmethod
    def find(cls, where: str, progress: Callable[[str], None]) -> "Facts":
        """Read them for a folder, a file in it, or a Hugging Face id, of which the small files are downloaded.

        Raises FilesError, HubError.
        """
        path = Path(where)
        if path.exists():
            return cls.read(path if path.is_dir() else path.parent)
        if path.is_absolute() or where.startswith("."):
            raise FilesError(f"{where}: no such file or folder")
        return cls.read(hub.fetch(where, WANTED, lambda folder: (folder / "config.json").is_file(), progress))


def _eos(generation: dict[str, Any], config: dict[str, Any]) -> list[int]:
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        if value is not None:
            return [value] if isinstance(value, int) else list(value)
    return []


def _number(config: dict[str, Any], name: str) -> int:
    """Find a number of the model's, or of its part for text."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        value = part.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return 0
