"""Ports of this machine: free ones, and whether one that was asked for can be had."""

from __future__ import annotations

import socket
from dataclasses import replace
from importlib.util import find_spec
from random import SystemRandom

from cluster.errors import ConfigError
from cluster.lifecycle.cluster_settings import ClusterSettings

_RANDOM = SystemRandom()
TRIES = 100
FIRST_HTTP = 8000
HAS_HTTP = bool(find_spec("starlette") and find_spec("uvicorn"))
"""Whether the packages of `quire[http]` are installed."""


QUIET = range(20_000, 32_000)
"""Above what Ray gives to its workers (10002 to 19999) and below what the system gives to outgoing connections: nobody
takes a port between its choice and its server."""


def free_port(host: str = "127.0.0.1") -> int:
    for _ in range(TRIES):
        port = _RANDOM.choice(QUIET)
        if is_free(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, setting: str) -> None:
    """Raises `ConfigError` for a port that cannot be had."""
    if not is_free(host, port):
        raise ConfigError(
            f"port {port} on {host} is taken; free it, or give another with --{setting.replace('_', '-')}"
        )


def check_ports(settings: ClusterSettings) -> None:
    """All that were asked for."""
    for port, name in settings.ports().values():
        check_port(settings.host, port, name)


def with_ports(settings: ClusterSettings) -> ClusterSettings:
    """Ports that are left to us are chosen once: an actor that is started again must come up where it was."""
    port = settings.port or free_row(settings.host, settings.gateways)
    taken = {port + number for number in range(settings.gateways)}
    http_port = settings.http_port
    if http_port is None:
        http_port = _free_http(settings, taken) if HAS_HTTP else 0
    taken |= {http_port + number for number in range(settings.gateways)}
    others: dict[str, int] = {}
    for name in ("admin_port", "metrics_port"):
        found = getattr(settings, name)
        while not found or found in taken:
            found = free_port(settings.host)
        taken.add(found)
        others[name] = found
    return replace(
        settings,
        port=port,
        http_port=http_port,
        admin_port=others["admin_port"],
        metrics_port=others["metrics_port"],
    )


def _free_http(settings: ClusterSettings, taken: set[int]) -> int:
    """8000, as people expect it, or the next with as many free ones in a row; 0: there is none near."""
    for first in range(FIRST_HTTP, FIRST_HTTP + TRIES):
        row = range(first, first + settings.gateways)
        if taken.isdisjoint(row) and all(is_free(settings.host, port) for port in row):
            return first
    return 0


def free_row(host: str, length: int) -> int:
    """The first of so many free ports in a row."""
    for _ in range(TRIES):
        first = free_port(host)
        if first + length <= 65536 and all(is_free(host, first + number) for number in range(1, length)):
            return first
    raise ConfigError(f"no {length} free ports in a row were found on {host}; give the first with --port")


def is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True
