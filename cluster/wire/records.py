"""Counts what an encoded message holds before it is parsed: a few megabytes can hide millions of parts.

Parsing makes an object of every part and holds up the whole process meanwhile; this walk stops at its budget. Doors
call it for messages of strangers that are long enough to matter. It judges nothing else: what can't be walked is left
to the parser, which refuses it by name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MAX_RECORDS = 20_000
"""Fields, list entries and map entries of one message, those inside others included."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_CONTINUED = bytes(range(128, 256))


class _TooMany(Exception):
    pass


@cache
def _inner(kind: Any) -> dict[int, Any]:
    """By number: the descriptor of the message in a field, or None for a list of numbers that may be packed."""
    inner: dict[int, Any] = {}
    for field in kind.fields:
        if field.message_type is not None:
            inner[field.number] = field.message_type
        elif field.is_repeated and field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            inner[field.number] = None
    return inner


def why_too_many(raw: bytes, kind: type[Message], max_numbers: int) -> str:
    """Why this encoded message of that kind must not be parsed; empty if it may be. `max_numbers`: in packed lists."""
    walk = _Walk(raw, max_numbers)
    try:
        walk.message(0, len(raw), kind.DESCRIPTOR)
    except IndexError:
        return ""  # cut short
    except _TooMany as why:
        return str(why)
    return ""


class _Walk:
    def __init__(self, raw: bytes, max_numbers: int) -> None:
        self._raw = raw
        self._records = 0
        self._numbers = 0
        self._max_numbers = max_numbers

    def message(self, at: int, end: int, kind: Any) -> None:
        inner, raw = _inner(kind), self._raw
        while at < end:
            self._records += 1
            if self._records > MAX_RECORDS:
                raise _TooMany(f"holds more than {MAX_RECORDS:,} fields and entries")
            tag, at = self._varint(at)
            wire_type = tag & 7
            if wire_type == _LENGTH:
                size, at = self._varint(at)
                if size > end - at:
                    raise IndexError
                number = tag >> 3
                if number in inner:
                    self._inside(at, at + size, inner[number])
                at += size
            elif wire_type == _VARINT:
                while raw[at] & 128:
                    at += 1
                at += 1
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            else:
                raise IndexError

    def _inside(self, at: int, end: int, kind: Any) -> None:
        if kind is not None:
            self.message(at, end, kind)
            return
        # A number ends with the byte that is not continued; fixed ones have some such bytes at least.
        self._numbers += len(self._raw[at:end].translate(None, _CONTINUED))
        if self._numbers > self._max_numbers:
            raise _TooMany(f"holds more than {self._max_numbers:,} numbers in its lists")

    def _varint(self, at: int) -> tuple[int, int]:
        byte = self._raw[at]
        if byte < 128:
            return byte, at + 1
        value, shift = byte & 127, 7
        while shift < 64:
            at += 1
            byte = self._raw[at]
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at + 1
            shift += 7
        raise IndexError
