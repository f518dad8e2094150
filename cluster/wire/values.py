"""Values that came as JSON, or as Python's own objects, read strictly: each is of its kind, or refused by its name.

The HTTP door reads bodies with it, client and embedded engine conversations.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.errors import InvalidRequest

MAX_ENTRIES = 20_000
"""Of a list or mapping in a body: what the wire's own bounds would refuse later is refused before it is copied."""
MAX_PARTS = 100_000
"""Strings, lists and objects of one JSON text. Python makes an object of each, and nothing else runs meanwhile."""
MAX_DEPTH = 256
LONG_BYTES = 64 << 10
"""A text of so many bytes is read in a millisecond or two, whatever is in it."""

_BESIDE_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parsed(field: str, raw: bytes, max_numbers: int = MAX_PARTS) -> Any:
    """The value of a JSON text that somebody else wrote, counted before it is made. Raises `InvalidRequest`."""
    count_parts(field, raw, max_numbers=max_numbers)
    # Numbers of a long text by functions of Python's own: between two of them other threads run.
    to_int, to_float = (_int_of, _float_of) if len(raw) > LONG_BYTES else (None, None)
    try:
        # In no other code than UTF-8, which is what was counted.
        return json.loads(raw.decode(), parse_constant=_no_constant, parse_int=to_int, parse_float=to_float)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"is no JSON: {str(error)[:200]}", "send an object") from error


def count_parts(field: str, raw: bytes, max_parts: int = MAX_PARTS, max_numbers: int = MAX_PARTS) -> int:
    """Strings, lists and objects in a JSON text. Raises `InvalidRequest` for too many of them, or too deep ones."""
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_strings = bare.count(b'"') // 2
    # What stands between the quotes is what a model is told, brackets and all.
    outside = bare if num_strings > max_parts else b"".join(bare.split(b'"')[::2])
    brackets = outside.translate(None, _BESIDE_BRACKETS)
    num_parts = num_strings + len(brackets) // 2
    if num_parts > max_parts:
        problem = f"has {num_parts:,} strings, lists and objects"
        raise InvalidRequest(field, problem, f"give at most {max_parts:,}")
    num_values = outside.count(b",")
    if num_values > max_numbers:
        raise InvalidRequest(field, f"has {num_values:,} values", f"give at most {max_numbers:,}")
    depth = deepest = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise InvalidRequest(field, f"is nested {deepest:,} deep", f"nest at most {MAX_DEPTH} lists and objects")
    return num_parts


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _int_of(digits: str) -> int:
    return int(digits)


def _float_of(digits: str) -> float:
    return float(digits)


def number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(field, f"is {shown(value)}", "give a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidRequest(field, f"is {shown(value)}", "give a smaller number") from error


def whole(field: str, value: Any, low: int = -(1 << 31), high: int = (1 << 31) - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(field, f"is {shown(value)}", "give a whole number")
    if not low <= value <= high:
        raise InvalidRequest(field, f"is {value:,}", f"give {low:,} to {high:,}")
    return value


def truth(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"is {shown(value)}", "give true or false")
    return value


def text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(field, f"is {shown(value)}", "give a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, "holds half of a surrogate pair", "give whole characters") from error
    return value


def listed(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(field, f"is {shown(value)}", "give a list")
    if len(value) > MAX_ENTRIES:
        raise InvalidRequest(field, f"has {len(value):,} entries", f"give at most {MAX_ENTRIES:,}")
    return value


def mapping(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(field, f"is {shown(value)}", "give an object")
    if len(value) > MAX_ENTRIES:
        raise InvalidRequest(field, f"has {len(value):,} entries", f"give at most {MAX_ENTRIES:,}")
    return value


def shown(value: Any) -> str:
    """Short enough for an error."""
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}..."
