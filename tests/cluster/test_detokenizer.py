"""Text as it comes against the decoding of all tokens at once, and stop strings against a search of the whole text."""

from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import worker.demo
from cluster.gateway.detokenizer import LONGEST_WINDOW, Detokenizer, TextWindow, detokenizers
from cluster.sampling import SamplingParams

DEMO = Path(worker.demo.__file__).parent / "tokenizer.json"
TEXT = "Ein Haus, 家が一つ, дом один, 🏠🏠 one house. naïve café — “quoted”… 👩‍👩‍👧 end\n\tindented  twice"


@lru_cache
def byte_level() -> Tokenizer:
    """Byte-level BPE with few merges, so that most characters beyond ASCII come in several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    return tokenizer


@lru_cache
def byte_fallback() -> Tokenizer:
    """As Llama 2 and Gemma: words with a mark for the space, bytes for all else, the first space stripped."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ["▁", "o", "n", "e", "h", "u", "s", ",", ".", "on", "one", "▁one", "ho", "us", "▁h", "家"]:
        vocabulary[piece] = len(vocabulary)
    merges = [("o", "n"), ("on", "e"), ("▁", "one"), ("h", "o"), ("u", "s"), ("▁", "h")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@lru_cache
def demo() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO))


def check_against_whole(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> None:
    """After each token: what is out is final, and with what is held back it is the decoding of all so far."""
    window = TextWindow(lambda part: tokenizer.decode(part, skip_special_tokens=skip))
    out = ""
    for count, token in enumerate(ids, 1):
        out += window.add(token)
        assert out + window.rest() == tokenizer.decode(ids[:count], skip_special_tokens=skip)
        assert len(window.rest()) < LONGEST_WINDOW and not window.rest().strip("\ufffd")


@given(st.lists(st.integers(0, 329), max_size=150), st.booleans())
def test_byte_level_tokens_in_any_order(ids: list[int], skip: bool) -> None:
    ids = [token % byte_level().get_vocab_size() for token in ids]
    check_against_whole(byte_level(), ids, skip)


@given(st.lists(st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xE5, 0xAE, 0xB6, 0xFF, 0xC3, 0xA9, 0x41]), max_size=120))
def test_bytes_that_are_hardly_ever_characters(raw: list[int]) -> None:
    """The worst for an incremental decoder: long runs of broken bytes, with characters that come out of them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    mapping = {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}
    assert set(mapping.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    check_against_whole(byte_level(), [byte_level().token_to_id(mapping[byte]) for byte in raw])


@given(st.text(max_size=60))
def test_texts_come_back_whole(text: str) -> None:
    tokenizers = [byte_level(), byte_fallback()]
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text).ids
        window = TextWindow(tokenizer.decode)
        assert "".join(window.add(token) for token in ids) + window.rest() == tokenizer.decode(ids)


def test_characters_come_out_as_soon_as_they_are_complete() -> None:
    ids = byte_level().encode("a屋b").ids
    window = TextWindow(byte_level().decode)
    pieces = [window.add(token) for token in ids]
    assert pieces == ["a", "", "", "屋", "b"]
    bytes_of_house = [byte_fallback().token_to_id(f"<0x{byte:02X}>") for byte in "屋根".encode()]
    window = TextWindow(byte_fallback().decode)
    assert [window.add(token) for token in bytes_of_house] == ["", "", "屋", "", "", "根"]


def test_byte_fallback_that_changes_its_mind_takes_nothing_back() -> None:
    """A broken byte makes marks of the characters before it; they are out, and what follows goes on behind them."""
    tokenizer = byte_fallback()
    raw = [*"屋根".encode(), 0xFF]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in raw] + tokenizer.encode("one house").ids * 20
    window = TextWindow(tokenizer.decode)
    text = "".join(window.add(token) for token in ids) + window.rest()
    assert text.startswith("屋根\ufffd")
    assert text.endswith(" one house" * 20)


@given(st.lists(st.integers(0, 10**6), max_size=120))
def test_the_demo_model_s_tokenizer(numbers: list[int]) -> None:
    size = demo().get_vocab_size()
    check_against_whole(demo(), [number % size for number in numbers])


@pytest.mark.parametrize("token", ["a", "é", "broken"])
def test_a_token_costs_the_same_however_long_the_text(token: str) -> None:
    """Also a model that loops over half a character for ever, which never gets to a place where the text is whole."""
    tokenizer = byte_level()
    ids = tokenizer.encode("🏠").ids[:1] if token == "broken" else tokenizer.encode(token).ids
    calls = []

    def decode(part: list[int]) -> str:
        calls.append(len(part))
        return tokenizer.decode(part)

    window = TextWindow(decode)
    ids = ids * (3000 // len(ids))
    out = "".join(window.add(one) for one in ids) + window.rest()
    assert out == tokenizer.decode(ids)
    assert max(calls) <= LONGEST_WINDOW
    assert len(calls) <= len(ids) * 1.1


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def resolved(**settings) -> SamplingParams:
    return SamplingParams(**settings).resolve({}, vocab_size=0x110000, max_model_len=99, seed=1)


@given(
    st.text("abc", max_size=40),
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=40, max_size=40),
    st.booleans(),
    st.integers(0, 8),
)
def test_stop_strings_end_the_text_where_a_search_of_the_whole_would(
    text: str, stops: list[str], lengths: list[int], include: bool, min_tokens: int
) -> None:
    """However the text is cut into tokens; here a token is a run of letters."""
    tokens, at = [], 0
    for length in lengths:
        tokens.append(text[at : at + length])
        at += length
    tokens = [token for token in tokens if token]
    params = resolved(stop=stops, include_stop_str_in_output=include, min_tokens=min_tokens)
    spelled = Detokenizer(lambda ids: "".join(tokens[one] for one in ids), params)
    early = len("".join(tokens[:min_tokens]))
    # The first place where some stop string is complete, and the longest of those.
    ends = [(end, stop) for end in range(early + 1, len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    # A stop string that was complete early does not count, but its letters may be part of one that counts.
    expected, expected_stop = text, None
    if ends:
        end = ends[0][0]
        expected_stop = max((stop for at, stop in ends if at == end), key=len)
        expected = text[: end if include else end - len(expected_stop)]
    out, found = "", None
    for number in range(len(tokens)):
        piece = spelled.add(number)
        out += piece.text
        assert text.startswith(out)
        if piece.stop_string is not None:
            found = piece.stop_string
            break
    else:
        out += spelled.rest()
    assert found == expected_stop
    assert out == expected


def test_text_is_held_back_only_while_a_stop_string_may_have_begun() -> None:
    one = Detokenizer(letters, resolved(stop=["END", "Enough"]))
    pieces = [one.add(ord(letter)).text for letter in "an E, EN, En END"]
    assert pieces == ["a", "n", " ", "", "E,", " ", "", "", "EN,", " ", "", "", "En ", "", "", ""]
    other = Detokenizer(letters, resolved(stop=["END"]))
    assert [other.add(ord(letter)).text for letter in "xEN"] == ["x", "", ""]
    assert other.rest() == "EN"


def test_stop_strings_across_tokens_and_characters_across_tokens() -> None:
    tokenizer = byte_level()
    for include, expected in ((False, "ein "), (True, "ein Haus 家")):
        one = Detokenizer(tokenizer.decode, resolved(stop=["家が", "Haus 家"], include_stop_str_in_output=include))
        out = ""
        for token in tokenizer.encode("ein Haus 家が一つ").ids:
            piece = one.add(token)
            out += piece.text
            if piece.stop_string:
                break
        assert (piece.stop_string, out) == ("Haus 家", expected)


def test_end_tokens_give_no_text_unless_asked() -> None:
    for include, expected in ((False, "ab"), (True, "ab!")):
        one = Detokenizer(letters, resolved(stop_token_ids=[ord("!")], include_stop_str_in_output=include))
        assert "".join(one.add(ord(letter)).text for letter in "ab!") + one.rest() == expected


def test_special_tokens_that_are_left_out_do_not_make_a_new_beginning() -> None:
    """The first space of a text is stripped, that of a later word is not: whatever stands between, and how long."""
    tokenizer = byte_fallback()
    special = tokenizer.token_to_id("<unk>")
    word = tokenizer.encode("one").ids
    seen = [token for token in [special] * 50 + word + [special] * 100 + word + [special] + word if token != special]
    window = TextWindow(lambda ids: tokenizer.decode([token for token in ids if token != special]))
    tokens = [special] * 50 + word + [special] * 100 + word + [special] + word
    out = "".join(window.add(token) for token in tokens) + window.rest()
    assert out == tokenizer.decode(seen) == "one one one"


def test_sequences_of_a_request_share_nothing() -> None:
    make = detokenizers(resolved(stop="END"), letters)
    first, second = make(), make()
    assert first.add(ord("E")).text == ""
    assert second.add(ord("N")).text == "N"
