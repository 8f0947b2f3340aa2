"""docs/api.md is held to the code: every field is in its tables, and none that there is not."""

import re
from typing import Any

import msgspec
import pytest

from messages.submit import IGNORED, NOT_HERE, Chat, Completion
from tests.harness import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of the table under a heading, by the field in front."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    found = {first.strip("|` "): rest for first, *rest in cells}
    assert len(found) == len(cells), "a field stands there twice"
    return found


def fields(kind: type[msgspec.Struct]) -> set[str]:
    """The fields of a body."""
    return {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize(("kind", "column"), [(Chat, 0), (Completion, 1)])
def test_the_fields_that_are_taken(kind: type[msgspec.Struct], column: int) -> None:
    taken = {name for name, cells in rows("What is taken").items() if cells[column] == "yes"}
    assert taken == fields(kind) - IGNORED.keys()
    assert {cells[column] for cells in rows("What is taken").values()} == {"yes", "-"}


def test_the_fields_that_change_nothing() -> None:
    assert {name: cells[0].rstrip(" |") for name, cells in rows("What is taken and changes nothing").items()} == IGNORED
    assert IGNORED.keys() <= fields(Chat)
    assert IGNORED.keys() & fields(Completion) == {"user"}


def test_the_fields_that_are_refused_by_name() -> None:
    assert {name: cells[0].rstrip(" |") for name, cells in rows("What others take and we refuse").items()} == NOT_HERE
    assert not NOT_HERE.keys() & (fields(Chat) | fields(Completion))


def test_bounds_on_the_page_are_the_codes() -> None:
    from actors.processor import grammars, stops
    from messages.submit import MOST_CHOICES

    said: list[Any] = [
        f"at most {MOST_CHOICES}",
        f"{grammars.MOST_BYTES // 1024} KiB",
        f"{grammars.MOST_DEPTH} levels",
        f"{grammars.MOST_SIZE:,} characters",
        f"nested {grammars.MOST_NESTED} deep",
        f"{stops.MOST_CHARACTERS:,} characters",
    ]
    assert [words for words in said if not re.search(re.escape(words), PAGE)] == []
