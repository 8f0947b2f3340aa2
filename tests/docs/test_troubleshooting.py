"""docs/troubleshooting.md is true: each trouble is brought about, and each line that the page quotes comes."""

import re
from pathlib import Path

import pytest

from tests.docs.scenes import SCENES
from tests.supervisor.cluster import ROOT

pytestmark = [pytest.mark.nats, pytest.mark.timeout(90)]

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = {
    found[1]: found[2].splitlines()
    for found in re.finditer(r"<!-- tried: ([a-z-]+) -->\n```\n(.*?)\n```", PAGE, re.DOTALL)
}


def matches(quoted: str, line: str) -> bool:
    """Whether a quoted line is this one; `…` stands for anything."""
    return re.fullmatch(".*".join(re.escape(part) for part in quoted.split("…")), line.rstrip()) is not None


def test_each_quotation_has_its_scene_and_each_scene_is_quoted() -> None:
    assert set(QUOTED) == set(SCENES)
    assert PAGE.count("\n```\n") == 2 * len(QUOTED), "no quotation without a name"


MARKS = {
    "engine-memory": [pytest.mark.long, pytest.mark.sglang, pytest.mark.timeout(180)],
    "nats-lost": [pytest.mark.long],
    "nats-away": [pytest.mark.long],
    "nats-password": [pytest.mark.long],
}
"""The scenes that take longest, for what they tell."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in QUOTED])
def test_what_is_quoted_is_what_one_sees(name: str, tmp_path: Path) -> None:
    seen = SCENES[name](tmp_path).splitlines()
    for quoted in QUOTED[name]:
        assert any(matches(quoted, line) for line in seen), f"{quoted!r} is not in:\n" + "\n".join(seen)


def test_a_line_that_did_not_come_is_noticed() -> None:
    assert matches("… demo#1 died: …; starting again", "18:40:49 demo#1 died: killed by SIGKILL; starting again")
    assert not matches("… demo#1 died: …; starting again", "18:40:49 demo#1 died: killed by SIGKILL")
    assert not matches("demo died", "demo died twice")
