"""The numbers of one conversation: what was said, what is kept until it is taken, what is to be sent again.

Every frame of a message counts, from 1 on in each direction, for as long as both ends live, over all their connections.
A frame is taken once and in order; who takes it says so with its next word, and then the other end forgets it. Both
ends of a conversation have one of these. It knows no peer, no life and no time.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

from cluster.errors import ProtocolError
from cluster.links.frames import HEAD_BYTES, KIND_AT, MESSAGE, PART, PULSE, pack
from cluster.links.terms import Read, Terms, unreadable

_FRAME_COST = 100
"""Bytes that a kept frame takes beside its own."""


class Numbers:
    """Both directions of one conversation, seen from one end."""

    __slots__ = (
        "_kept",
        "_parts",
        "_terms",
        "_untold_bytes",
        "kept_bytes",
        "num_sent",
        "owes_word",
        "parts_bytes",
        "said",
        "sent_bytes",
        "taken",
        "told",
    )

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        # Numbers of the last frame said, of the last one taken, and of what the other end was told to be taken.
        self.said = self.taken = self.told = 0
        # Said and not taken, oldest first; the first `num_sent` have gone out on the connection that is open.
        self._kept: deque[bytes] = deque()
        self.kept_bytes = 0
        self.num_sent = self.sent_bytes = 0
        # Of a message that has not come whole.
        self._parts: list[bytes] = []
        self.parts_bytes = 0
        # Much was taken, and the other end was not told.
        self._untold_bytes, self.owes_word = 0, False

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        return self.kept_bytes > self._terms.max_kept_bytes

    # -- said here

    def say(self, message: bytes) -> None:
        """Keeps it; `due` says what goes out. Raises ProtocolError for what is too large for any link."""
        size = self._terms.part_bytes
        if len(message) <= size:
            self._keep(MESSAGE, message)
            return
        if len(message) > self._terms.max_message_bytes:
            raise ProtocolError(f"a message of {len(message):,} bytes; {self._terms.max_message_bytes:,} are the most")
        last = (len(message) - 1) // size * size
        for at in range(0, last, size):
            self._keep(PART, message[at : at + size])
        self._keep(MESSAGE, message[last:])

    def _keep(self, kind: int, body: bytes) -> None:
        self.said += 1
        frame = pack(kind, self.said, self.taken, body)
        self._kept.append(frame)
        self.kept_bytes += len(frame) + _FRAME_COST

    def due(self) -> list[bytes]:
        """What is to go out now on the connection that is open: all that was not sent on it, as far as the other end
        keeps up."""
        kept, window = self._kept, self._terms.window_bytes
        num = len(kept) - self.num_sent
        if not num or self.sent_bytes >= window:
            return []
        frames = []
        for frame in (kept[-1],) if num == 1 else islice(kept, self.num_sent, None):
            if self.sent_bytes >= window:
                break
            frames.append(frame)
            self.sent_bytes += len(frame)
        self.num_sent += len(frames)
        self._note_told()
        return frames

    def reopen(self) -> None:
        """On another connection: whatever is kept is to be sent again."""
        self.num_sent = self.sent_bytes = 0

    def acknowledge(self, number: int) -> None:
        """The other end has taken all up to `number`. Raises ProtocolError for what was never said."""
        kept = self._kept
        num = number - self.said + len(kept)
        if num <= 0:
            return
        if num > len(kept):
            raise ProtocolError(f"frame {number} is said to be taken, and {self.said} is the last one said")
        if self._terms.keeps:
            # The next life of the other end needs a message whole.
            while num and kept[num - 1][KIND_AT] == PART:
                num -= 1
        for _ in range(num):
            size = len(kept.popleft())
            self.kept_bytes -= size + _FRAME_COST
            if self.num_sent:
                self.num_sent -= 1
                self.sent_bytes -= size

    def renumber(self) -> None:
        """For another life of the other end: both directions begin anew, with what is kept."""
        frames = list(self._kept)
        self._kept.clear()
        self.said = self.taken = self.kept_bytes = 0
        self._note_told()
        self._parts, self.parts_bytes = [], 0
        self.reopen()
        for frame in frames:
            self._keep(frame[KIND_AT], frame[HEAD_BYTES:])

    # -- heard from the other end

    def take(self, kind: int, number: int, body: bytes, read: Read) -> Any:
        """The message that this frame ends; None: it ends none, or was taken before. Raises ProtocolError, and then it
        is not taken: it will be sent again."""
        if number != self.taken + 1:
            if number <= self.taken:
                return None
            raise ProtocolError(f"frames jump from {self.taken} to {number}")
        message = None
        if kind == MESSAGE:
            raw = b"".join([*self._parts, body]) if self._parts else body
            try:
                message = read(raw)
            except Exception as error:
                raise unreadable(raw, error) from error
            if self._parts:
                self._parts, self.parts_bytes = [], 0
        else:
            if self.parts_bytes + len(body) > self._terms.max_message_bytes:
                raise ProtocolError(f"a message of more than {self._terms.max_message_bytes:,} bytes")
            self._parts.append(body)
            self.parts_bytes += len(body)
        self.taken = number
        self._untold_bytes += len(body)
        if number - self.told >= self._terms.untold_frames or self._untold_bytes >= self._terms.untold_bytes:
            self.owes_word = True
        return message

    def pulse(self, note: bytes = b"") -> bytes:
        """A frame that says how far all was taken."""
        self._note_told()
        return pack(PULSE, 0, self.taken, note)

    def _note_told(self) -> None:
        self.told, self._untold_bytes, self.owes_word = self.taken, 0, False

    def check(self) -> None:
        """Raises AssertionError if anything here does not fit together."""
        kept, num_sent = self._kept, self.num_sent
        assert self.kept_bytes == sum(map(len, kept)) + _FRAME_COST * len(kept), self.kept_bytes
        assert 0 <= num_sent <= len(kept) <= self.said, (num_sent, len(kept), self.said)
        assert self.sent_bytes == sum(map(len, islice(kept, num_sent))), self.sent_bytes
        assert self.told <= self.taken, (self.told, self.taken)
        assert self.parts_bytes == sum(map(len, self._parts)) <= self._terms.max_message_bytes, self.parts_bytes
