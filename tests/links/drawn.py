"""Messages of protobuf as no honest end sends them: every field at its edges, bytes changed, by seed."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

WORDS = ("", "r0", "g0", "m", "t/q", "\x00", "local:x", "/", "a" * 300, "é\ud7ff", "..", "0")
REALS = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e300, 1e-300)
SMALL = (0, 1, 2, 3, 7, 15, 16, 17, 255, 4096)
_BITS = {Field.CPPTYPE_INT32: 31, Field.CPPTYPE_INT64: 63, Field.CPPTYPE_UINT32: 32, Field.CPPTYPE_UINT64: 64}
_SIGNED = (Field.CPPTYPE_INT32, Field.CPPTYPE_INT64)


def drawn(kind: type[Message], random: Random, depth: int = 0) -> Message:
    """Any message of this kind."""
    message = kind()
    given: set[str] = set()
    for field in kind.DESCRIPTOR.fields:
        group = field.containing_oneof
        if group is not None and not group.name.startswith("_"):
            if group.name in given or (random.choice(group.fields) is not field and field is not group.fields[-1]):
                continue
            given.add(group.name)
        elif random.random() < 0.3:
            continue
        _fill(message, field, random, depth)
    return message


def _fill(message: Message, field: Field, random: Random, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        if value.message_type is None:
            getattr(message, field.name)[_value(key, random)] = _value(value, random)
    elif field.is_repeated:
        for _ in range(random.choice((0, 1, 1, 2, 3))):
            if field.cpp_type == Field.CPPTYPE_MESSAGE:
                if depth < 5:
                    part = getattr(message, field.name).add()
                    part.CopyFrom(drawn(type(part), random, depth + 1))
            else:
                getattr(message, field.name).append(_value(field, random))
    elif field.cpp_type == Field.CPPTYPE_MESSAGE:
        if depth < 5:
            part = getattr(message, field.name)
            part.SetInParent()
            part.CopyFrom(drawn(type(part), random, depth + 1))
    else:
        setattr(message, field.name, _value(field, random))


def _value(field: Field, random: Random) -> Any:
    kind = field.cpp_type
    if kind in _BITS:
        most = (1 << _BITS[kind]) - 1
        edges = (*SMALL, most, most - 1, random.randrange(most), *((-1, -most - 1) if kind in _SIGNED else ()))
        # What is small fits, and goes further.
        return random.choice(edges if random.random() < 0.4 else SMALL[:5])
    if kind in (Field.CPPTYPE_DOUBLE, Field.CPPTYPE_FLOAT):
        return random.choice(REALS)
    if kind == Field.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind == Field.CPPTYPE_ENUM:
        return random.choice([value.number for value in field.enum_type.values])
    if field.type == Field.TYPE_BYTES:
        # Columns of 4 and 8 bytes, small and large.
        size = random.choice((0, 1, 4, 8, 8, 12, 16, 16, 32, 40))
        return bytes(random.choice((0, 0, 0, 1, 2, 255)) if at % 4 == 0 else 0 for at in range(size)) \
            if random.random() < 0.7 else random.randbytes(size)  # fmt: skip
    return random.choice(WORDS)


def changed(raw: bytes, random: Random) -> bytes:
    """Some of its bytes gone, doubled or other ones."""
    data = bytearray(raw)
    for _ in range(random.randrange(1, 4)):
        if not data:
            return random.randbytes(8)
        at = random.randrange(len(data))
        what = random.randrange(4)
        if what == 0:
            data[at] = random.randrange(256)
        elif what == 1:
            del data[at : at + random.randrange(1, 9)]
        elif what == 2:
            data[at:at] = random.randbytes(random.randrange(1, 9))
        else:
            data[at:at] = data[at : at + random.randrange(1, 33)]
    return bytes(data)
