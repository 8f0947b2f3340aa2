"""What is wrong with a request, as a person would say it: the field with its path, and the nearest field there is."""

import difflib
import re
from typing import Any, Final, get_args, get_type_hints

import msgspec

from actors.processor.refusal import RefusalError
from messages.submit import NOT_HERE, Message

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_WRONG: Final = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?", re.DOTALL)

ROLES: Final[tuple[str, ...]] = get_args(get_type_hints(Message)["role"])


def refusal(error: Exception, kind: type[msgspec.Struct], form: str) -> RefusalError:
    """Turn msgspec's error for a body of `kind`, sent in `form` (JSON or msgpack), into ours."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return RefusalError(400, f"the body is not valid {form}: text at byte {error.start} is not UTF-8")
    if not isinstance(error, msgspec.ValidationError):
        return RefusalError(400, f"the body is not valid {form}: {text[:200]}")
    if unknown := _UNKNOWN.fullmatch(text):
        where = _join(unknown["path"], unknown["name"])
        known = [] if unknown["path"] else [field.encode_name for field in msgspec.structs.fields(kind)]
        close = difflib.get_close_matches(unknown["name"], known, n=1, cutoff=0.5)
        instead = "" if unknown["path"] else NOT_HERE.get(unknown["name"], "")
        hint = f"; {instead}" if instead else f"; did you mean {close[0]!r}?" if close else ""
        return RefusalError(400, f"{where}: there is no such field{hint}", param=where)
    if missing := _MISSING.fullmatch(text):
        where = _join(missing["path"], missing["name"])
        return RefusalError(400, f"{where}: missing", param=where)
    wrong = _WRONG.fullmatch(text)
    if wrong is None or not wrong["path"]:
        return RefusalError(400, f"the body: {text[0].lower()}{text[1:]}")
    where, what = wrong["path"], wrong["what"]
    if what.startswith("Invalid enum value") and where.endswith(".role"):
        what += f"; a role is one of {', '.join(ROLES)}"
    return RefusalError(400, f"{where}: {what[0].lower()}{what[1:]}", param=where)


def id_in(data: bytes, decode: Any) -> str:
    """Find the id in a body that is otherwise wrong, so that the client knows which request is refused."""
    try:
        body = decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    found = body.get("id") if isinstance(body, dict) else None
    return found[:64] if isinstance(found, str) else ""


def _join(path: str | None, name: str) -> str:
    return f"{path}.{name}" if path else name
