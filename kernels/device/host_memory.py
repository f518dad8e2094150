"""How much memory of this machine a process could still take: what the system has and what the control group leaves.

Needs nothing but /proc and /sys, so that a host pool's process stays small. Nothing here allocates or remembers.
"""

from __future__ import annotations

from pathlib import Path

_UNBOUNDED = 2**63


def available_bytes() -> int:
    """Bytes that could be taken now without driving anything out."""
    return min(_machine_free(), _group_free())


def lines_of(path: str | Path) -> list[str]:
    """The lines of a file of the kernel; none where it does not exist."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _machine_free() -> int:
    for line in lines_of("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _UNBOUNDED


def _group_free() -> int:
    """What the control group leaves; pages of files count as free, because the kernel takes them back."""
    root = Path("/sys/fs/cgroup")
    limit = "".join(lines_of(root / "memory.max")).strip()
    if not limit.isdigit():
        return _UNBOUNDED
    used = int("".join(lines_of(root / "memory.current")).strip() or 0)
    files = sum(int(line.split()[1]) for line in lines_of(root / "memory.stat") if line.startswith("inactive_file "))
    return max(0, int(limit) - used + files)
