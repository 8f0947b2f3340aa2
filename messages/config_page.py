"""The page `docs/configuration.md`, made from the structs of `messages/config/`: keys, what they take, defaults."""

import inspect
import re
import sys
from typing import Any, Final

import msgspec
from msgspec import inspect as types

from messages.config import Cluster

HEAD: Final = """# Configuration

Made from `messages/config/` by `python -m messages.config_page`; a test compares the two.

A cluster is one YAML file. `configs/` has some that run as they are; `troupe check FILE` says what is wrong with one,
where it is and what would be right, and starts nothing. Relative paths are taken from the file's own folder. A key that
is left out has its default; a key that is not known is refused. Where a default is "needed", there is none.
"""


def as_markdown() -> str:
    """Write the page."""
    places: dict[type, list[str]] = {}
    _visit(types.type_info(Cluster), "", places)
    return HEAD + "".join(_section(kind, paths) for kind, paths in places.items())


def _visit(kind: types.Type, path: str, places: dict[type, list[str]]) -> None:
    """Note at which paths each struct stands, those of the file's top first."""
    match kind:
        case types.StructType(cls):
            known = cls in places
            places.setdefault(cls, []).append(path)
            if not known:
                for field in kind.fields:
                    _visit(field.type, f"{path}.{field.encode_name}".lstrip("."), places)
        case types.ListType(inner):
            _visit(inner, f"{path}[]", places)
        case types.DictType(_, inner):
            _visit(inner, f"{path}.<{'role' if path.endswith('cast') else 'name'}>", places)
        case types.UnionType(members):
            for member in members:
                _visit(member, path, places)
        case types.Metadata(inner):
            _visit(inner, path, places)


def _section(kind: type, paths: list[str]) -> str:
    title = ", ".join(f"`{path}`" for path in paths if path) or "The top of the file"
    said = re.sub(r"\n(?!\n)", " ", inspect.getdoc(kind) or "").replace("\n ", "\n\n")
    rows = [
        f"| `{field.encode_name}` | {_takes(field.type)} | {_default(field)} |"
        for field in types.type_info(kind).fields  # type: ignore[attr-defined]
    ]
    return "\n".join(["", f"## {title}", "", said, "", "| key | takes | default |", "| --- | --- | --- |", *rows, ""])


def _takes(kind: types.Type) -> str:
    """Say in words what a value may be."""
    match kind:
        case types.LiteralType(values):
            return ", ".join(f"`{value}`" for value in values)
        case types.BoolType():
            return "`true` or `false`"
        case types.IntType(ge=least, lt=below, le=most):
            bounds = [f"at least {least:,}" if least is not None else "", f"below {below:,}" if below else ""]
            bounds.append(f"at most {most:,}" if most else "")
            return ", ".join(["a whole number", *filter(None, bounds)])
        case types.FloatType(gt=above, ge=least):
            return "a number" + (f" above {above:g}" if above is not None else f" of at least {least:g}")
        case types.StrType(min_length=least, max_length=most):
            return "text" + (f" of {least} to {most} characters" if most else "")
        case types.ListType(inner):
            return f"a list of: {_takes(inner)}"
        case types.DictType(key, inner):
            return f"a map from {_takes(key)} to: {_takes(inner)}"
        case types.StructType(cls):
            return f"the keys of {cls.__name__}, below"
        case types.UnionType(members):
            return " or ".join(_takes(member) for member in members if not isinstance(member, types.NoneType))
        case types.Metadata(inner):
            return _takes(inner)
    return "anything"


def _default(field: types.Field) -> str:
    if field.required:
        return "needed"
    value: Any = field.default
    if value is msgspec.NODEFAULT:
        assert field.default_factory is not msgspec.NODEFAULT
        value = field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "its own defaults"
    return {None: "left out", True: "`true`", False: "`false`", "": "empty"}.get(_key(value)) or f"`{_shown(value)}`"


def _key(value: Any) -> Any:
    """Return what can be looked up: numbers must not be taken for truth values."""
    return value if value is None or isinstance(value, bool | str) else repr(value)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
