"""Finds a model's folder and looks at it before minutes go into loading it: what is wrong is said in one sentence."""

import json
from functools import partial
from pathlib import Path
from typing import Final

from actors import hub
from actors.engines.engine import ConfigurationError, LoadError, Report

WANTED: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")


def find_model(path: str, report: Report) -> Path:
    """Return the folder of a usable model, given it or a Hugging Face id; of an id, what is not here is downloaded.

    Raises ConfigurationError for what starting again cannot mend, LoadError where the hub might answer later.
    Of safetensors files the header is read and the length compared (format: 8 bytes little-endian length of a JSON
    header, then the header, then the tensors at the offsets that it gives).
    """
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/")) or path.count("/") != 1:
            raise ConfigurationError(
                f"there is no model folder {path}; give a folder, or a Hugging Face id (owner/name)"
            )
        try:
            folder = hub.fetch(path, WANTED, _has_weights, partial(report, "download"))
        except hub.HubError as error:
            raise (ConfigurationError if error.final else LoadError)(str(error)) from error
    if not folder.is_dir():
        raise ConfigurationError(f"{path} is no folder; give the folder that holds config.json and the weights")
    _check_json(folder / "config.json")
    for file in sorted(folder.glob("*.safetensors")):
        _check_safetensors(file)
    return folder


def repetition_penalty(folder: Path) -> float:
    """Return the repetition penalty that a model's generation_config.json has for all who say nothing; 1.0 for none."""
    try:
        found = json.loads((folder / "generation_config.json").read_bytes()).get("repetition_penalty")
    except (OSError, ValueError, AttributeError):
        return 1.0
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found <= 2 else 1.0


def _has_weights(folder: Path) -> bool:
    """Say whether each file of weights that an index names is there, or any where there is no index."""
    if not (folder / "config.json").is_file():
        return False
    indices = list(folder.glob("*.safetensors.index.json"))
    if not indices:
        return any(folder.glob("*.safetensors"))
    try:
        return all(
            (folder / file).is_file()
            for index in indices
            for file in set(json.loads(index.read_bytes())["weight_map"].values())
        )
    except (OSError, ValueError, KeyError):
        return False


def _check_json(file: Path) -> None:
    try:
        json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from None


def _check_safetensors(file: Path) -> None:
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= size - 8:
                raise ConfigurationError(f"{file} is torn: {size} bytes cannot hold its header of {length}")
            header = json.loads(opened.read(length))
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"{file} is no safetensors file: its header is not JSON") from None
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if (whole := 8 + length + max(ends, default=0)) > size:
        raise ConfigurationError(f"{file} is torn: it has {size} bytes of {whole}; copy or download it again")
