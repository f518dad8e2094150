"""Values that came as JSON, or as Python's own objects, read strictly: each is of its kind, or refused by its name.

The HTTP door reads bodies with it, client and embedded engine conversations.
"""

from __future__ import annotations

from typing import Any

from cluster.errors import InvalidRequest

MAX_ENTRIES = 20_000
"""Of a list or mapping in a body: what the wire's own bounds would refuse later is refused before it is copied."""


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
