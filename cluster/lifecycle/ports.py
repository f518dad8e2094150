"""Ports of this machine: a free one, and whether one that was asked for can be had."""

from __future__ import annotations

import socket

from cluster.errors import ConfigError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, setting: str) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            detail = f"port {port} on {host} is taken; free it, or give another with --{setting.replace('_', '-')}"
            raise ConfigError(detail) from error
