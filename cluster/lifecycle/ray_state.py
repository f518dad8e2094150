"""What Ray keeps for a cluster of ours: addresses, the epoch of the scheduler, the keys. Small values by name.

Kept in the key-value store of the Ray head, so it lives as long as the Ray cluster and is seen from every node. Only
processes that are connected to Ray import this.
"""

from __future__ import annotations

import secrets
import time

from ray.experimental import internal_kv

PREFIX = "quire"


class RayState:
    """The values of one of our clusters, by its Ray namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def _key(self, name: str) -> bytes:
        return f"{PREFIX}:{self._namespace}:{name}".encode()

    def get(self, name: str) -> str:
        """Empty if it was never put."""
        value = internal_kv._internal_kv_get(self._key(name))
        return value.decode() if value else ""

    def put(self, name: str, value: str) -> None:
        internal_kv._internal_kv_put(self._key(name), value.encode(), overwrite=True)

    def remove(self, name: str) -> None:
        internal_kv._internal_kv_del(self._key(name))

    def names(self, prefix: str) -> list[str]:
        """Those that begin so, without it, in order."""
        whole = self._key(prefix)
        return sorted(key.removeprefix(whole).decode() for key in internal_kv._internal_kv_list(whole))

    def remove_all(self) -> None:
        internal_kv._internal_kv_del(self._key(""), del_by_prefix=True)

    def next_epoch(self) -> int:
        """One more than any scheduler before had. Only the one scheduler actor calls it, when it starts."""
        epoch = int(self.get("epoch") or 0) + 1
        self.put("epoch", str(epoch))
        return epoch

    def next_life(self, name: str) -> int:
        """Of the process of this name that starts now: higher than any before it had, whatever the clocks of their
        machines said, and than those of an earlier cluster. Only the one actor of the name calls it."""
        life = max(int(self.get(f"life of {name}") or 0) + 1, time.time_ns() // 1_000_000)
        self.put(f"life of {name}", str(life))
        return life

    def key(self, name: str) -> bytes:
        """A secret of the cluster, drawn when it is first asked for. Two that ask at once get the same."""
        if not self.get(name):
            internal_kv._internal_kv_put(self._key(name), secrets.token_hex(32).encode(), overwrite=False)
        return bytes.fromhex(self.get(name))
