"""What a killed life leaves outside its folder: removed if it is what it should be, and nothing else is."""

import socket
from pathlib import Path

from messages import leftovers


def test_what_was_noted_is_removed_and_the_list_with_it(tmp_path: Path) -> None:
    slot, elsewhere = tmp_path / "slot", tmp_path / "elsewhere"
    for folder in (slot, elsewhere, elsewhere / "troupe-abc"):
        folder.mkdir()
    (elsewhere / "troupe-abc" / "tcp:0").touch()
    (elsewhere / "tmpempty").touch()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(elsewhere / "tmpsocket"))
        leftovers.note(slot, [elsewhere / "troupe-abc", elsewhere / "tmpempty"])
        leftovers.note(slot, [elsewhere / "tmpsocket", elsewhere / "tmpgone"])
        assert leftovers.clear(slot) == 3
    assert list(elsewhere.iterdir()) == []
    assert list(slot.iterdir()) == []
    assert leftovers.clear(slot) == 0


def test_what_does_not_look_like_ours_is_left_alone(tmp_path: Path) -> None:
    precious = [tmp_path / "tmpnotes", tmp_path / "plain", tmp_path / "tmpfolder", tmp_path / "troupe-link"]
    precious[0].write_text("not empty")
    precious[1].touch()
    precious[2].mkdir()
    precious[3].symlink_to(precious[2])
    leftovers.note(tmp_path, precious)
    assert leftovers.clear(tmp_path) == 0
    assert sorted(tmp_path.iterdir()) == sorted(precious)
