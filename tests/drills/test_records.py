"""The judge is judged: a history that breaks a rule is found, and one that breaks none is not."""

from collections.abc import Callable

import pytest

from supervisor.drills.records import Piece, Record, Whole, faults

WHOLE = Whole([10, 11, 12, 13], "abcd")


def well(door: str = "nats") -> Record:
    """A request of which all came, in two pieces."""
    record = Record("some-id", "nats" if door == "nats" else "http", 0, 100.0, 5.0)
    told = (1, 0, 2) if door == "nats" else (-1, -1, -1)
    record.pieces = [Piece(100.5, told[0], told[1], [10, 11], "ab"), Piece(101.0, told[0], told[2], [12, 13], "cd")]
    if door == "http":
        record.pieces = [piece._replace(token_ids=[]) for piece in record.pieces]
    record.words, record.told_tokens = ["last"], 4
    record.outcome, record.ended = "done", 101.5
    return record


def _change(**fields: object) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for name, value in fields.items():
            setattr(record, name, value)

    return change


def _no_piece(record: Record) -> None:
    del record.pieces[0]


def _double(record: Record) -> None:
    record.pieces.insert(1, record.pieces[0])


def _short(record: Record) -> None:
    del record.pieces[1]
    record.told_tokens = 2


def _other_token(record: Record) -> None:
    record.pieces[1] = record.pieces[1]._replace(token_ids=[12, 99])


def _other_text(record: Record) -> None:
    record.pieces[1] = record.pieces[1]._replace(text="cX")


@pytest.mark.parametrize("door", ["nats", "http"])
def test_what_went_well_is_well(door: str) -> None:
    assert faults([well(door)], [WHOLE]) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_change(outcome="open"), "no end"),
        (_change(ended=200.0), "its deadline"),
        (_change(words=[]), "0 last words"),
        (_change(words=["Done", "Error"]), "2 last words"),
        (_change(outcome="closed", words=[]), "without a last word"),
        (_no_piece, "a delta at position 2 after 0"),
        (_double, "a delta at position 0 after 2"),
        (_short, "2 tokens came"),
        (_other_token, "other tokens"),
        (_other_text, "other text"),
    ],
)
def test_a_broken_rule_is_found(change: Callable[[Record], None], why: str) -> None:
    record = well()
    change(record)
    assert why in "\n".join(faults([record], [WHOLE]))


def test_only_over_http_may_a_connection_close() -> None:
    over_http, over_nats = well("http"), well()
    for record in (over_http, over_nats):
        record.outcome, record.words = "closed", []
    assert len(faults([over_http, over_nats], [WHOLE], may_close=True)) == 1
    assert len(faults([over_http], [WHOLE])) == 1


def test_an_attempt_never_has_two_last_words_even_where_messages_were_lost() -> None:
    record = well()
    record.words = ["Done of attempt 1", "Done of attempt 2"]
    assert faults([record], [WHOLE], lossy=True) == []
    record.words = ["Done of attempt 1", "Error of attempt 1"]
    assert len(faults([record], [WHOLE], lossy=True)) == 1
