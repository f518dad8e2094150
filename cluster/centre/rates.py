"""How fast bytes go between the nodes of the cluster: measured at start by each pool, and by every transfer since.

The cost model of swaps, moves and fetches reads it; the swapper notes in it how each transfer went. Between two nodes
that have not exchanged anything yet the rate is what the settings say a network brings.
"""

from __future__ import annotations

# How fast a new measurement moves a rate.
SMOOTHING = 0.2


class Rates:
    """Bytes per second by pair of nodes, both ways alike."""

    def __init__(self, network_bytes_per_s: float) -> None:
        self._network = network_bytes_per_s
        self._known: dict[tuple[str, str], float] = {}

    def at_start(self, node: str, bytes_per_s: float) -> None:
        """What a pool of this node measured within its own memory; the slowest of a node counts."""
        if bytes_per_s:
            self._known[node, node] = min(self._known.get((node, node), bytes_per_s), bytes_per_s)

    def note(self, node: str, other: str, size_bytes: int, seconds: float) -> None:
        """A transfer between these two nodes has ended well."""
        if seconds <= 0 or size_bytes <= 0:
            return
        road, measured = _road(node, other), size_bytes / seconds
        known = self._known.get(road)
        self._known[road] = measured if known is None else known + SMOOTHING * (measured - known)

    def between(self, node: str, other: str) -> float:
        """Bytes per second; 0: not known."""
        return self._known.get(_road(node, other), 0.0 if node == other else self._network)


def _road(node: str, other: str) -> tuple[str, str]:
    return (node, other) if node <= other else (other, node)
