"""How long bytes take between the nodes of the cluster: measured at start by each pool, and by every transfer since.

The cost model of swaps, moves and fetches reads it; who ordered a transfer notes in it how it went. A road is a latency
and a rate, so that small transfers do not make it look slow. Between two nodes that have not exchanged anything yet the
rate is what the settings say a network brings.
"""

from __future__ import annotations

from dataclasses import dataclass

# What each further transfer leaves of the weight of those before it.
MEMORY = 0.9
# How long a transfer takes to begin where nothing is wrong: what cannot be told apart goes to the latency or to the
# rate by which of the two it changes less, and this is what a latency is held against.
LATENCY_S = 1e-3
# How much weight the estimate so far has beside one transfer (a drift of ten times what measurements scatter).
INERTIA = 0.01


@dataclass(slots=True)
class Way:
    """One pair of nodes, both ways alike: least squares over its transfers, older ones forgotten bit by bit.

    `w`, `b`, `bb`, `t`, `bt` are the weighted sums of one, bytes, bytes squared, seconds, bytes times seconds.
    """

    usual_s_per_byte: float  # before anything was measured
    s_per_byte: float
    latency_s: float = 0.0
    w: float = 0.0
    b: float = 0.0
    bb: float = 0.0
    t: float = 0.0
    bt: float = 0.0

    def note(self, size_bytes: int, seconds: float) -> None:
        # Errors count as shares of what such a transfer usually takes: a few large ones do not outweigh the small.
        weight = 1.0 / (LATENCY_S + size_bytes * self.usual_s_per_byte) ** 2
        self.w = MEMORY * self.w + weight
        self.b = MEMORY * self.b + weight * size_bytes
        self.bb = MEMORY * self.bb + weight * size_bytes**2
        self.t = MEMORY * self.t + weight * seconds
        self.bt = MEMORY * self.bt + weight * size_bytes * seconds
        self._fit()

    def _fit(self) -> None:
        """The latency and rate that come closest to the transfers, and among those the nearest to what was thought."""
        one, other = LATENCY_S, self.usual_s_per_byte
        left = one * (self.t - self.latency_s * self.w - self.s_per_byte * self.b)
        right = other * (self.bt - self.latency_s * self.b - self.s_per_byte * self.bb)
        a, b, d = one * one * self.w + INERTIA, one * other * self.b, other * other * self.bb + INERTIA
        scale = a * d - b * b
        latency_s = self.latency_s + one * (d * left - b * right) / scale
        s_per_byte = self.s_per_byte + other * (a * right - b * left) / scale
        if latency_s < 0.0:
            latency_s, s_per_byte = 0.0, self.bt / self.bb
        elif s_per_byte <= 0.0:
            # Large ones were the faster ones: their sizes say nothing about the rate.
            s_per_byte = self.s_per_byte
            latency_s = max(0.0, (self.t - s_per_byte * self.b) / self.w)
        self.latency_s, self.s_per_byte = latency_s, s_per_byte


class Rates:
    """Ways by pair of nodes. It has no clock: what it says follows from what it was told."""

    def __init__(self, network_bytes_per_s: float) -> None:
        self._network = network_bytes_per_s
        self._ways: dict[tuple[str, str], Way] = {}

    def at_start(self, node: str, bytes_per_s: float) -> None:
        """What a pool of this node measured within its own memory; the slowest of a node counts."""
        if not bytes_per_s:
            return
        way = self._ways.setdefault((node, node), Way(1 / bytes_per_s, 1 / bytes_per_s))
        way.s_per_byte = max(way.s_per_byte, 1 / bytes_per_s)

    def note(self, node: str, other: str, size_bytes: int, seconds: float) -> None:
        """A transfer between these two nodes has ended well."""
        if seconds <= 0 or size_bytes <= 0:
            return
        pair = _pair(node, other)
        way = self._ways.get(pair)
        if way is None:
            usual = seconds / size_bytes if node == other else 1 / self._network
            way = self._ways[pair] = Way(usual, usual)
        way.note(size_bytes, seconds)

    def lost_s(self, node: str, other: str, size_bytes: int, share: float, num_beside: int) -> float:
        """Seconds that a replica on `node` loses to a transfer of one of the `num_beside` sequences that run there:
        `share` of its bytes' time. The latency holds up that one alone, so its part of it counts. Infinite where
        nothing is known of the way."""
        way = self._way(node, other)
        return share * size_bytes * way.s_per_byte + way.latency_s / max(1, num_beside)

    def seconds(self, node: str, other: str, size_bytes: int) -> float:
        """How long a transfer would take. Infinite where nothing is known of the way."""
        way = self._way(node, other)
        return way.latency_s + size_bytes * way.s_per_byte

    def _way(self, node: str, other: str) -> Way:
        way = self._ways.get(_pair(node, other))
        if way is not None:
            return way
        usual = float("inf") if node == other else 1 / self._network
        return Way(usual, usual)


def standing_s(wait_s: float, step_s: float, block_size: int) -> float:
    """Seconds that a full replica loses while it waits so long for blocks to come free: each sequence needs one every
    `block_size` steps, and from then on stands still."""
    longest = block_size * step_s
    if not longest:
        return 0.0
    return wait_s * wait_s / (2 * longest) if wait_s < longest else wait_s - longest / 2


def _pair(node: str, other: str) -> tuple[str, str]:
    return (node, other) if node <= other else (other, node)
