"""Looks at a model's folder before minutes go into loading it: what is missing or torn is said in one sentence."""

import json
from pathlib import Path

from actors.engines.engine import ConfigurationError


def check_model(path: str) -> None:
    """Raise ConfigurationError if `path` is a folder that holds no usable model; a hub's id is let through.

    Of safetensors files the header is read and the length compared (format: 8 bytes little-endian length of a JSON
    header, then the header, then the tensors at the offsets that it gives).
    """
    folder = Path(path)
    if not folder.exists():
        if path.startswith((".", "/")) or path.count("/") != 1:
            raise ConfigurationError(
                f"there is no model folder {path}; give a folder, or a Hugging Face id (owner/name)"
            )
        return
    if not folder.is_dir():
        raise ConfigurationError(f"{path} is no folder; give the folder that holds config.json and the weights")
    _check_json(folder / "config.json")
    for file in sorted(folder.glob("*.safetensors")):
        _check_safetensors(file)


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
