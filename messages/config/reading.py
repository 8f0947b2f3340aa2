"""Reads a configuration: YAML into structs, paths placed, and errors that name the path and the nearest right name."""

import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from messages.config.checks import check
from messages.config.cluster import Cluster
from messages.config.written import ConfigError, nearest


def read(path: Path) -> Cluster:
    """Read and check a configuration file; relative paths in it are taken from the file's own folder.

    Raises ConfigError with the file's name, the path inside it and the nearest right name.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return parse(data, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(data: bytes, folder: Path) -> Cluster:
    """Decode and check a configuration; `folder` is what its relative paths start from. Raises ConfigError."""
    try:
        cluster = msgspec.yaml.decode(data, type=Cluster)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"not YAML: {error}") from None
    for model in cluster.models:
        model.path = _placed(model.path, folder)
        model.tokenizer = _placed(model.tokenizer, folder)
        model.chat_template = _placed(model.chat_template, folder)
    if cluster.nats.password_file is not None:
        cluster.nats.password_file = str((folder / cluster.nats.password_file).resolve())
    check(cluster)
    return cluster


def _placed(path: str | None, folder: Path) -> str | None:
    """Resolve a relative path from the configuration's folder; leave alone what is no file there (a hub's id)."""
    if path is None or Path(path).is_absolute():
        return path
    placed = folder / path
    return str(placed.resolve()) if placed.exists() or path.startswith((".", "/")) else path


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_WRONG = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?", re.DOTALL)


def _explain(text: str) -> str:
    """Turn msgspec's sentence into ours: the path first, and for an unknown field the nearest known one."""
    if unknown := _UNKNOWN.fullmatch(text):
        name, path = unknown["name"], unknown["path"] or ""
        return f"{path + '.' if path else ''}{name}: unknown; {nearest(name, _fields_at(path))}"
    wrong = _WRONG.fullmatch(text)
    if not wrong or not wrong["path"]:
        return text
    return f"{wrong['path']}: {wrong['what'][0].lower()}{wrong['what'][1:]}"


def _fields_at(path: str) -> list[str]:
    """List the fields that the struct at a path of the configuration may have."""
    kind: Any = Cluster
    for step in [part for part in re.split(r"\.|\[\.\.\.\]|\[\d+\]", path) if part]:
        if kind is None:
            return []
        found = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}.get(step)
        kind = _struct_in(found)
    return [field.encode_name for field in msgspec.structs.fields(kind)] if kind is not None else []


def _struct_in(kind: Any) -> Any:
    """Find the one struct of ours inside a type such as `list[Model]` or `Restart | None`."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind
    for inner in getattr(kind, "__args__", ()):
        if (found := _struct_in(inner)) is not None:
            return found
    return None
