"""Batches of troupe-small-chat's training: full to the last token, the same for a seed, heavy where answers end."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from models.train import batches, mixture
from models.train.source import Source, is_held_out
from tests.harness import ROOT

ENCODER = batches.Encoder(Tokenizer.from_file(str(ROOT / "models" / "troupe-small-chat" / "tokenizer.json")))
SIZE = 16_384


def test_a_batch_is_full_and_depends_on_seed_and_number_alone() -> None:
    one = batches.training_batch(ENCODER, "7", 3, SIZE)
    same = batches.training_batch(batches.Encoder(ENCODER.tokenizer), "7", 3, SIZE)
    other = batches.training_batch(ENCODER, "7", 4, SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.tokens, other.tokens)
    assert ENCODER.padding not in one.tokens


@pytest.mark.parametrize("room", [1, 40, 400])
def test_only_the_last_document_is_cut_off_and_what_is_learnt_of_it_stays_its_own(room: int) -> None:
    source = Source("cut", held_out=False)
    whole, cut = (
        max(
            ENCODER.documents([mixture.conversation(source, "counting") for _ in range(40)]),
            key=lambda d: len(d.tokens),
        )
        for _ in range(2)
    )
    length = len(whole.tokens)
    batch = ENCODER.pack([whole, cut], length + room)
    assert batch.tokens.tolist() == whole.tokens + cut.tokens[:room]
    assert np.array_equal(batch.weights[whole.asked - 1 : length - 1], whole.weights())
    assert not batch.weights[length - 1 : length + min(cut.asked, room) - 1].any()
    learnt = max(0, room - cut.asked)
    assert np.array_equal(batch.weights[length + room - 1 - learnt : length + room - 1], cut.weights()[:learnt])
    assert batch.weights[-1] == 0


def test_what_does_not_fit_at_all_is_refused() -> None:
    document = batches.Document([1, 2, 3, 4], 2, 0)
    with pytest.raises(ValueError, match="4 tokens and one more document do not fit into a batch of 4"):
        ENCODER.pack([document, document], 4)


def test_where_a_long_answer_begins_and_ends_weighs_as_much_as_a_short_one() -> None:
    long, short = batches.Document([0] * 1710, 10, 0).weights(), batches.Document([0] * 26, 10, 0).weights()
    assert long[0] == long[-1] == short[0] == short[-1] == batches.EDGE_WEIGHT
    assert 0 < long[850] < batches.EDGE_WEIGHT


def test_drills_and_pieces_of_the_tokenizer_are_for_training_only() -> None:
    kept, trained = Source("drills", held_out=True), Source("drills", held_out=False, pieces=["zzyzx"])
    assert not any(kept.drill(1.0) for _ in range(10))
    assert trained.drill(1.0)
    assert not is_held_out("value zzyzx")
    assert "zzyzx" in {trained.made_up() for _ in range(200)}
