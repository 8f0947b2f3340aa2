"""Names of things in a cluster: roles, aliases, slots, incarnations and request ids, built and checked here alone."""

import re
import uuid
from typing import Final, Literal, NamedTuple, get_args

Role = Literal["processor", "encoder", "prefill", "decode", "publisher"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+")
_NOT_TOKEN: Final = re.compile(r"[^A-Za-z0-9_-]")
_SLOT: Final = re.compile(r"(?P<alias>[A-Za-z0-9_-]+)-(?P<role>" + "|".join(ROLES) + r")-(?P<number>[0-9]+)")
_INCARNATION: Final = re.compile(r"(?P<slot>.+)-g(?P<generation>[0-9]+)")


class Slot(NamedTuple):
    """A place in a model's cast, unique in the cluster; written `<alias>-<role>-<number>`."""

    alias: str
    role: Role
    number: int

    def __str__(self) -> str:
        return f"{self.alias}-{self.role}-{self.number}"


def alias_of(model: str) -> str:
    """Make the alias of a model: its name with every character that a subject cannot carry turned into `_`.

    Raises ValueError for an empty name.
    """
    if not model:
        raise ValueError("a model's name is empty; it needs at least one character")
    return _NOT_TOKEN.sub("_", model)


def check_token(text: str, what: str) -> str:
    """Return `text` if it can stand as one token of a subject; raise ValueError naming `what` if not."""
    if not TOKEN.fullmatch(text):
        raise ValueError(f"{what} {text!r} may hold only A-Z a-z 0-9 - _ and must not be empty")
    return text


def parse_slot(text: str) -> Slot:
    """Read a slot's name back into its parts; raise ValueError if it is none."""
    found = _SLOT.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no slot; a slot is written <alias>-<role>-<n>, for example demo-decode-0")
    role: Role = next(role for role in ROLES if role == found["role"])
    return Slot(found["alias"], role, int(found["number"]))


def incarnation_of(slot: str, generation: int) -> str:
    """Name one life of a slot as subjects and frames carry it: `<slot>-g<generation>`."""
    return f"{slot}-g{generation}"


def parse_incarnation(text: str) -> tuple[str, int]:
    """Split an incarnation into (slot, generation); raise ValueError if it is none."""
    found = _INCARNATION.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no incarnation; one is written <slot>-g<generation>")
    return found["slot"], int(found["generation"])


def short(slot: str, generation: int) -> str:
    """Name one life of a slot as logs and people say it: `<slot>#<generation>`."""
    return f"{slot}#{generation}"


def new_request_id() -> str:
    """Make a request id: a random UUID in its 36-character form."""
    return str(uuid.uuid4())


def check_request_id(text: str) -> str:
    """Return the request id in its 36-character form; raise ValueError if `text` is no UUID."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(f"request id {text[:64]!r} is no UUID; leave it out to have one made") from None
