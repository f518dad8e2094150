"""The inside of a cluster: where a process's internal ports listen, and what every call on them must show.

`quire up` prepares it once; each actor then asks `inside_of` when it starts, so that one which Ray has started again,
or on another node, has the same. The secret is drawn for the cluster. Where nodes may be several machines, internal
ports also speak TLS, by an authority of the cluster's own that signs nothing else: the certificates of the public door
may come from anybody, and none of them opens a port in here. Nothing of it is ever written to a disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.links.security import PEER_NAME, ClusterSecurity, TlsFiles
from cluster.serving.public_port import EVERYWHERE

if TYPE_CHECKING:
    from cluster.lifecycle.ray_state import RayState

SECRET, OPERATORS = "inside secret", "operators' token"
AUTHORITY, CERTIFICATE, KEY = "inside authority", "inside certificate", "inside key"


@dataclass(frozen=True, slots=True)
class Inside:
    """`host`: what this process's internal ports listen on, and what others reach them by."""

    host: str
    security: ClusterSecurity

    def address(self, port: int) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def reachable(self, host: str, port: int) -> str:
        """The address of a door that listens on `host`: where that is every address, the one others know us by."""
        return self.address(port) if host in EVERYWHERE else f"{host}:{port}"


def prepare(state: RayState, *, is_one_machine: bool) -> str:
    """Draws what the cluster lacks yet, and returns what operators' commands show. One machine keeps to loopback; where
    others may join, internal ports listen on their nodes' addresses, and there are certificates."""
    state.key(SECRET)
    token = operators_token(state)
    if is_one_machine or state.get(AUTHORITY):
        return token
    from cluster.serving.auth_certificates import make_identity

    authority, certificate, key = make_identity(PEER_NAME)
    # The authority comes last: whoever finds it finds the others.
    for name, pem in ((CERTIFICATE, certificate), (KEY, key), (AUTHORITY, authority)):
        state.put(name, pem.decode())
    return token


def operators_token(state: RayState) -> str:
    """What our own commands show at the operators' door, where it takes tokens. It opens nothing on the inside."""
    return state.key(OPERATORS).hex()


def inside_of(state: RayState) -> Inside:
    """For the process that asks, on the node that Ray has put it."""
    import ray

    secret = state.key(SECRET).hex()
    if not state.get(AUTHORITY):
        return Inside("127.0.0.1", ClusterSecurity(secret))
    # Ray knows a node by this address; what a process finds out by itself may be another one.
    node = ray.get_runtime_context().get_node_id()
    host = next(str(one["NodeManagerAddress"]) for one in ray.nodes() if one["NodeID"] == node)
    certificate, key, authority = (_in_memory(name, state.get(name)) for name in (CERTIFICATE, KEY, AUTHORITY))
    return Inside(host, ClusterSecurity(secret, TlsFiles(certificate, key, authority)))


def _in_memory(name: str, content: str) -> Path:
    """A file that only this process sees and that goes with it, for libraries that take certificates by path."""
    descriptor = os.memfd_create(name)
    os.write(descriptor, content.encode())
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}")
