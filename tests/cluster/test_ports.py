"""Ports that are left to us are none that others are given without asking."""

from __future__ import annotations

from pathlib import Path

from ray.scripts.scripts import start

from cluster.lifecycle.ports import free_port


def test_nobody_else_is_given_a_port_that_was_chosen() -> None:
    default = {option.name: option.default for option in start.params}
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = {free_port() for _ in range(300)}
    # Ray refuses a port of its own that lies among its workers'.
    assert not found & set(range(int(default["min_worker_port"]), int(default["max_worker_port"]) + 1))
    assert len(found) > 200 and not found & set(range(first, last + 1))
