"""The vocabulary may grow but never break: golden bytes, and the four rules of schema evolution.

A new field needs a default; an array-like struct only appends; a field's type never changes; a tag never changes.
`python -m tests.messages.test_evolution` writes down structs that are new; it never overwrites what is written.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.messages.samples import JSON, MSGPACK, decoded, encoded, shapes

WIDENED = {("submit.Completion", "prompt"), ("lifecycle.Stage", "stage")}
"""Fields that take more than they did: what was written for the old type still reads the same. Nobody who reads them is
older than who writes: clients ask servers, and an actor's pipe is read by the supervisor of the same installation."""

GOLDEN = Path(__file__).parent / "golden.json"
NAMES = [*MSGPACK, *JSON]


def written() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"bytes": {}, "shapes": {}}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_old_bytes_decode_to_what_they_meant(name: str) -> None:
    golden = bytes.fromhex(written()["bytes"][name])
    assert decoded(name, golden) == (MSGPACK | JSON)[name]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not (name in JSON and name.startswith(("submit.", "embed.")))]
)
def test_unknown_fields_of_a_newer_sender_are_skipped(name: str) -> None:
    """But not in what clients write: there, unknown fields are refused by name."""
    data = encoded(name)
    if name in JSON:
        data = data[:-1] + b',"from_the_future":1}'
    elif data[0] & 0xF0 == 0x80:
        data = bytes([data[0] + 1]) + data[1:] + b"\xabfrom_future\x01"
    else:
        assert data[0] & 0xF0 == 0x90
        data = bytes([data[0] + 1]) + data[1:] + b"\x01"
    assert decoded(name, data) == (MSGPACK | JSON)[name]


@pytest.mark.parametrize("name", sorted(shapes()))
def test_structs_keep_the_four_rules(name: str) -> None:
    old, new = written()["shapes"][name], shapes()[name]
    assert new["tag"] == old["tag"], "a tag never changes"
    assert new["array"] == old["array"]
    fields = {field: (kind, required) for field, kind, required in new["fields"]}
    for field, kind, required in old["fields"]:
        assert fields[field][0] == kind or (name, field) in WIDENED, "a field's type never changes, and no field goes"
        assert required or not fields[field][1], "what had a default keeps one"
    if new["array"]:
        assert [field[0] for field in new["fields"]][: len(old["fields"])] == [field[0] for field in old["fields"]]
    for field, _, required in new["fields"]:
        assert not required or field in {known[0] for known in old["fields"]}, "a new field needs a default"


def test_the_rules_are_noticed_when_broken() -> None:
    old = written()["shapes"]["frames.Item"]["fields"]
    assert [field[0] for field in old] == ["request", "attempt", "position", "tokens", "finish"]
    assert old[-1][2] is False


def write() -> None:
    found = written()
    for name in NAMES:
        found["bytes"].setdefault(name, encoded(name).hex())
    for name, shape in shapes().items():
        found["shapes"].setdefault(name, shape)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    write()
