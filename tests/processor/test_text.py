"""Token ids to text: the same whatever the cuts, never half a character, stop strings found wherever they lie."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Coder

from actors.processor.detokenize import ByBytes, ByWindow, Pieces
from actors.processor.output import Output
from actors.processor.stops import StopMatcher
from tests.harness import ROOT

TINY = ROOT / "models" / "tiny" / "tokenizer.json"


def pieces_of(coder: Coder, size: int | None = None) -> Pieces:
    decoder = json.loads(coder.to_str())["decoder"]
    return Pieces.of(coder, decoder, size or coder.get_vocab_size(with_added_tokens=True))


BYTE_LEVEL = Coder.from_file(str(TINY))
BYTE_LEVEL_PIECES = pieces_of(BYTE_LEVEL, 600)


def _sentencepiece() -> Coder:
    """Make a tokenizer like Llama 2's: words with `▁`, and a token for every byte."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "a", "é", "▁end", "世"]
    model = models.BPE({word: at for at, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    coder = Coder(model)
    coder.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    coder.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return coder


def _wordpiece() -> Coder:
    vocabulary = {word: at for at, word in enumerate(["[UNK]", "un", "##believ", "##able", "story", "!", "the"])}
    coder = Coder(models.WordPiece(vocabulary, unk_token="[UNK]"))
    coder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    coder.decoder = decoders.WordPiece()
    return coder


SENTENCEPIECE = _sentencepiece()
SENTENCEPIECE_PIECES = pieces_of(SENTENCEPIECE)
WORDPIECE = _wordpiece()


@st.composite
def cuts(draw: st.DrawFn, ids: list[int]) -> list[list[int]]:
    """Cut a list anywhere."""
    ends = sorted(draw(st.sets(st.integers(1, max(1, len(ids) - 1)), max_size=8)))
    return [ids[begin:end] for begin, end in zip([0, *ends], [*ends, len(ids)], strict=True) if begin < end]


def streamed(pieces: Pieces, parts: list[list[int]], skip_special: bool = True) -> list[str]:
    stream = pieces.stream(skip_special=skip_special)
    return [*(stream.push(part) for part in parts), stream.finish()]


@given(st.data(), st.lists(st.integers(0, 511), max_size=60), st.booleans())
def test_any_cut_of_any_tokens_gives_the_text_of_decoding_at_once(
    data: st.DataObject, ids: list[int], skip_special: bool
) -> None:
    parts = data.draw(cuts(ids))
    told = streamed(BYTE_LEVEL_PIECES, parts, skip_special)
    assert "".join(told) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip_special)


@given(st.data(), st.text(max_size=40))
def test_no_half_character_is_ever_shown(data: st.DataObject, text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    told = streamed(BYTE_LEVEL_PIECES, data.draw(cuts(ids)), False)
    assert "".join(told) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in told)


@given(st.data(), st.text(max_size=30))
def test_bytes_fall_back_to_characters(data: st.DataObject, text: str) -> None:
    vocabulary = SENTENCEPIECE.get_vocab()
    ids = [vocabulary["▁the"], *(vocabulary[f"<0x{byte:02X}>"] for byte in text.encode())]
    ids += [vocabulary["▁end"], vocabulary["</s>"]]
    told = "".join(streamed(SENTENCEPIECE_PIECES, data.draw(cuts(ids))))
    assert told == f" the{text} end"
    assert told == SENTENCEPIECE.decode(ids, skip_special_tokens=True)


@given(st.data(), st.lists(st.integers(0, 6), max_size=30))
def test_a_tokenizer_of_another_kind_streams_too(data: st.DataObject, ids: list[int]) -> None:
    pieces = pieces_of(WORDPIECE)
    assert isinstance(pieces.stream(), ByWindow)
    at_once = streamed(pieces, [[at] for at in ids])
    assert "".join(streamed(pieces, data.draw(cuts(ids)))) == "".join(at_once)
    assert "".join(at_once) == WORDPIECE.decode(ids, skip_special_tokens=True)


def test_ids_without_a_token_say_nothing() -> None:
    assert isinstance(BYTE_LEVEL_PIECES.stream(), ByBytes)
    [a] = BYTE_LEVEL.encode("a", add_special_tokens=False).ids
    assert streamed(BYTE_LEVEL_PIECES, [[a, 599, a], [70_000], [a]]) == ["aa", "", "a", ""]


def test_marks_that_parsers_need_are_shown() -> None:
    ids = BYTE_LEVEL.encode("<|im_start|><think>why</think>so<|im_end|>", add_special_tokens=False).ids
    assert "".join(streamed(BYTE_LEVEL_PIECES, [ids])) == "<think>why</think>so"


# Stop strings.

STOPS = st.lists(st.text("ab<|", min_size=1, max_size=4), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Say what is before the stop string that is complete first: the plain definition, character by character."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.data(), st.text("ab<|", max_size=30), STOPS)
def test_stop_strings_are_found_across_cuts(data: st.DataObject, text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    shown, found = "", None
    wanted, wanted_stop = first_stop(text, stops)
    for begin, end in zip([0, *ends], [*ends, len(text)], strict=True):
        shown += matcher.push(text[begin:end])
        assert wanted.startswith(shown), "what has been shown turned out to be part of a stop string"
        if (found := matcher.found) is not None:
            break
    if found is None:
        shown += matcher.finish()
    assert (shown, found) == (wanted, wanted_stop)


def test_nothing_is_held_back_that_cannot_become_a_stop_string() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a < b") == "a < b"
    assert matcher.push("c <e") == "c "
    assert matcher.push("x") == "<ex"


@given(st.data(), st.text("ab ", min_size=1, max_size=30))
def test_the_token_that_completes_a_stop_string_is_the_last_that_counts(data: st.DataObject, text: str) -> None:
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    stop = data.draw(st.text("ab ", min_size=1, max_size=4))
    one = Output(BYTE_LEVEL_PIECES, skip_special=True, stops=[stop])
    counted, shown = 0, ""
    for at in ids:
        used, part = one.push([at])
        counted, shown = counted + used, shown + part
        if one.stopped:
            break
    other = Output(BYTE_LEVEL_PIECES, skip_special=True, stops=[stop])
    used, whole = other.push(ids)
    assert (used, whole, other.stopped) == (counted, shown, one.stopped)
    if not one.stopped:
        assert shown + one.finish() == text


@pytest.mark.parametrize("name", ["missing", "broken", "array"])
def test_an_unusable_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    from actors.processor.files import FilesError
    from actors.processor.tokenizer import Tokenizer

    if name == "broken":
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    elif name == "array":
        (tmp_path / "tokenizer.json").write_bytes(TINY.read_bytes())
        (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(FilesError, match=r"tokenizer\.json|must hold a JSON object"):
        Tokenizer(str(tmp_path))
