"""The bytes of tokens against the tokenizer's own decoding, for every token and for any run of them."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

import worker.demo
from cluster.errors import ProtocolError
from cluster.gateway.byte_level import _BYTE_OF, ByteTable, ByteWindow
from cluster.gateway.models import TextModel
from cluster.sampling import SamplingParams
from tests.cluster.test_detokenizer import TEXT, byte_fallback, byte_level

DEMO = Path(worker.demo.__file__).parent


def with_added() -> Tokenizer:
    """Added tokens of both kinds, with letters beyond the alphabet of bytes."""
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_special_tokens([AddedToken("<|ende 家|>", special=True)])
    tokenizer.add_tokens(["an added word", "家々", "plain"])
    return tokenizer


ADDED = with_added()
ALL = list(range(ADDED.get_vocab_size()))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(ALL), max_size=80), st.booleans())
def test_any_run_of_tokens(ids: list[int], skip: bool) -> None:
    window = ByteWindow(ByteTable(ADDED, len(ALL), skip))
    out = ""
    for count, token in enumerate(ids, 1):
        out += window.add(token)
        whole = ADDED.decode(ids[:count], skip_special_tokens=skip)
        assert out + window.rest() == whole
        assert len(window.rest()) <= 3


@settings(max_examples=200, deadline=None)
@example([0xED, 0xAE])
@given(
    st.lists(
        st.sampled_from([0xF0, 0x9F, 0x98, 0x80, 0xE5, 0xAE, 0xB6, 0xFF, 0xC3, 0xA9, 0x41, 0xED, 0xA0]), max_size=60
    )
)
def test_broken_bytes_break_at_the_same_places(raw: list[int]) -> None:
    """Surrogates, cut characters, bytes that are none: both decoders count their marks alike."""
    letters = {byte: word for word, byte in _BYTE_OF.items()}
    ids = [byte_level().token_to_id(letters[byte]) for byte in raw]
    window = ByteWindow(ByteTable(byte_level(), byte_level().get_vocab_size(), True))
    assert "".join(window.add(token) for token in ids) + window.rest() == byte_level().decode(ids)


def test_every_token_of_the_demo_model() -> None:
    model = TextModel.load("demo", DEMO)
    backend = model.tokenizer.backend_tokenizer
    assert ByteTable.fits(backend), "the demo model should take the short way"
    for skip in (True, False):
        table = ByteTable(backend, model.vocab_size, skip)
        for token in range(model.vocab_size):
            alone = ByteWindow(table)
            assert alone.add(token) + alone.rest() == backend.decode([token], skip_special_tokens=skip)
    make = model.cutters(SamplingParams().resolve({}, vocab_size=model.vocab_size, max_model_len=99))
    cutter = make()
    assert cutter is not None and type(cutter._window) is ByteWindow
    ids = model.encode(TEXT)
    assert "".join(cutter.add(token).text for token in ids) + cutter.rest() == model.decode(ids, True)


def test_other_tokenizers_take_the_long_way() -> None:
    assert not ByteTable.fits(byte_fallback()) and not ByteTable.fits(None)


def test_an_id_beyond_the_vocabulary_is_the_workers_mistake() -> None:
    with pytest.raises(ProtocolError, match="token id 9999 is none"):
        ByteWindow(ByteTable(byte_level(), 100, True)).add(9999)
