"""Two nodes as network namespaces on one bridge, for tests of several machines. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.bench.processes import NodeNetwork
from cluster.links.security import PEER_NAME, TlsFiles
from cluster.serving.auth_certificates import make_identity


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@contextmanager
def two_networks() -> Iterator[tuple[str, dict[str, NodeNetwork]]]:
    """This side's address, and nodes n0 and n1. Nothing is left of them behind it, whatever went wrong."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    number = os.getpid() % 10_000
    bridge, subnet = f"qb{number}", f"10.{180 + number % 50}.{number // 50}"
    networks = {f"n{at}": NodeNetwork(f"quire-{number}-{at}", f"{subnet}.{2 + at}") for at in range(2)}
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for at, network in enumerate(networks.values()):
            ip("netns", "add", network.namespace)
            near = f"qv{number}-{at}"
            ip("link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", network.namespace)
            ip("link", "set", near, "master", bridge, "up")
            for what in (["addr", "add", f"{network.host}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                ip("-n", network.namespace, *what)
            ip("-n", network.namespace, "link", "set", "lo", "up")
        yield f"{subnet}.1", networks
    finally:
        for network in networks.values():
            subprocess.run(["ip", "netns", "del", network.namespace], check=False, capture_output=True, timeout=20)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True, timeout=20)


def identity(folder: Path) -> TlsFiles:
    """What a process of the cluster has: an authority, a certificate by it, and its key."""
    files = TlsFiles(folder / "certificate", folder / "key", folder / "authority", PEER_NAME)
    authority, certificate, key = make_identity(PEER_NAME)
    for path, content in ((files.certificate, certificate), (files.key, key), (files.authority, authority)):
        path.touch(0o600)
        path.write_bytes(content)
    return files
