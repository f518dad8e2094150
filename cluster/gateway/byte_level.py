"""The text of byte-level tokens, at a fraction of what decoding a window of them costs.

Most models of today (GPT-2's kind of BPE: Llama 3, Qwen, DeepSeek and many more) write each token as a run of bytes,
so that text is their concatenation and needs no look at its neighbours. `ByteTable` knows the bytes of each token of
such a tokenizer, `ByteWindow` turns them into text as they come: a `Window` of `cluster/gateway/detokenizer.py`.
"""

from __future__ import annotations

import codecs
from typing import Any

from cluster.errors import ProtocolError

_utf8 = codecs.getincrementaldecoder("utf-8")


def _alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: those that print stand for themselves, the others for what follows 255."""
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = {chr(byte): byte for byte in printing}
    letters.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return letters


_BYTE_OF = _alphabet()


class ByteTable:
    """The bytes of each token, found when it is first seen."""

    def __init__(self, backend: Any, vocab_size: int, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skipped: frozenset[int] = frozenset()
        if skip_special_tokens:
            added = backend.get_added_tokens_decoder()
            self._skipped = frozenset(token for token, entry in added.items() if entry.special)
        self.known: list[bytes | None] = [None] * vocab_size

    @staticmethod
    def fits(backend: Any) -> bool:
        """True for a tokenizer of the `tokenizers` package whose text is its tokens' bytes and nothing else."""
        return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"

    def find(self, token: int) -> bytes:
        word = None if token in self._skipped else self._backend.id_to_token(token)
        # What is not written in the alphabet of bytes is an added token, which stands for its own letters.
        if word is None:
            raw = b""
        elif all(letter in _BYTE_OF for letter in word):
            raw = bytes([_BYTE_OF[letter] for letter in word])
        else:
            raw = word.encode()
        self.known[token] = raw
        return raw


class ByteWindow:
    """One sequence. The text let out and `rest` together are the decoding of all tokens at once."""

    __slots__ = ("_decoder", "_table")

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._decoder = _utf8("replace")

    def add(self, token: int) -> str:
        """The text that has become certain: whole characters, and marks for bytes that can't become one."""
        try:
            raw = self._table.known[token]
        except IndexError as error:
            raise ProtocolError(f"token id {token} is none of the {len(self._table.known):,} of this model") from error
        if raw is None:
            raw = self._table.find(token)
        return self._decoder.decode(raw)

    def rest(self) -> str:
        """What is still held back, at the end of the tokens."""
        held: bytes = self._decoder.getstate()[0]
        # Several marks, where the bytes that wait could not even have begun a character.
        return held.decode("utf-8", "replace")
