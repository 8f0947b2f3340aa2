"""Bytes and names: token ids packed and unpacked, aliases, slots, subjects, and the page made of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messages import codec, embed, ids, subjects, submit
from messages.subjects import Subjects

ROOT = Path(__file__).resolve().parents[2]


@given(st.lists(st.integers(0, (1 << 32) - 1)))
def test_token_ids_come_back_as_they_went(tokens: list[int]) -> None:
    packed = codec.pack_tokens(tokens)
    assert len(packed) == 4 * len(tokens) == 4 * codec.token_count(packed)
    assert codec.unpack_tokens(packed) == tokens


@pytest.mark.parametrize("token", [-1, 1 << 32])
def test_what_is_no_token_id_is_not_packed(token: int) -> None:
    with pytest.raises(OverflowError):
        codec.pack_tokens([token])


def test_torn_token_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="5 bytes"):
        codec.unpack_tokens(b"12345")


@given(st.text(min_size=1))
def test_every_model_name_has_an_alias_that_subjects_can_carry(name: str) -> None:
    alias = ids.alias_of(name)
    assert Subjects().submit(alias, "chat") == f"troupe.v1.submit.{alias}.chat"


@given(st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True), st.sampled_from(ids.ROLES), st.integers(0, 999))
def test_slots_and_incarnations_read_back(alias: str, role: ids.Role, number: int) -> None:
    slot = ids.Slot(alias, role, number)
    assert ids.parse_slot(str(slot)) == slot
    assert ids.parse_incarnation(ids.incarnation_of(str(slot), 7)) == (str(slot), 7)


@pytest.mark.parametrize("bad", ["a.b", "a*", ">", "", "a b", "ü"])
def test_what_cannot_stand_in_a_subject_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="A-Z a-z 0-9"):
        Subjects(bad)
    with pytest.raises(ValueError, match="A-Z a-z 0-9"):
        Subjects().submit(bad, "chat")


@pytest.mark.parametrize("bad", ["demo-decode", "decode-0", "demo-encode-0", "demo-decode-0-g1"])
def test_what_is_no_slot_is_refused_with_an_example(bad: str) -> None:
    with pytest.raises(ValueError, match="demo-decode-0"):
        ids.parse_slot(bad)


def test_request_ids_are_uuids_in_one_form() -> None:
    assert ids.check_request_id("6F1C8D8E3F0A4A519D550D6A6C6F9A01") == "6f1c8d8e-3f0a-4a51-9d55-0d6a6c6f9a01"
    with pytest.raises(ValueError, match="leave it out"):
        ids.check_request_id("mine.*")


def test_the_page_of_subjects_is_the_one_made_from_the_code() -> None:
    page = (ROOT / "docs" / "subjects.md").read_text()
    assert page == subjects.as_markdown(), "run: python -m messages.subjects > docs/subjects.md"


def test_logprobs_are_packed_and_read_back() -> None:
    ranked = [(-0.5, [(1, -0.5), (511, -1.5)]), (-3.25, [(2, -0.25), (3, float("-inf"))])]
    packed = codec.pack_logprobs(ranked)
    assert len(packed) == 2 * (4 + 2 * 8)
    assert codec.unpack_logprobs(packed, 2) == [ranked[0], (-3.25, [(2, -0.25), (3, codec.IMPOSSIBLE)])]
    assert codec.unpack_logprobs(codec.pack_logprobs([(-1.0, [])]), 1) == [(-1.0, [])]
    assert codec.unpack_logprobs(b"", 0) == []


@pytest.mark.parametrize(("size", "count"), [(3, 1), (4, 0), (0, 1), (8, 1), (24, 5)])
def test_bytes_that_are_no_logprobs_are_refused(size: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes are no log-probabilities of {count} tokens"):
        codec.unpack_logprobs(bytes(size), count)


def test_a_client_says_only_what_it_means() -> None:
    """So that a field which an older processor does not know is refused only where it is used."""
    assert codec.to_json(submit.Generate(token_ids=[1], max_tokens=4)) == b'{"max_tokens":4,"token_ids":[1]}'
    assert codec.to_json(embed.Embed(input="x")) == b'{"input":"x"}'
