"""Amounts as people write and read them: "2GiB" to bytes and back, and "1 request" or "2 requests".

Settings, command line and start-up lines use it. Nothing here knows what the amount is of.
"""

from __future__ import annotations

import re

from cluster.errors import ConfigError

_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}b": size for unit, size in _UNITS.items() if unit not in ("", "b")}
_UNITS |= {f"{unit}i{end}": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1) for end in ("", "b")}


def parse_bytes(amount: int | str, name: str) -> int:
    """Bytes of "2GiB", "512 MB", "1.5g" or a plain number; raises ConfigError that names the setting `name`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(amount))
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ConfigError(f'{name} is {amount!r}, which is no amount of memory; write it like "2GiB" or "512MiB"')
    size = int(float(found[1]) * unit)
    if size < 1:
        raise ConfigError(f"{name} is {amount!r}; give more than nothing")
    return size


def counted(number: int, thing: str) -> str:
    """The number with its noun: "1 request", "1,024 requests"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def format_bytes(size: float) -> str:
    """`size` with the binary unit that leaves one to four digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
