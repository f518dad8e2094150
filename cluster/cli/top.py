"""`quire top`: the cluster live, every pool as a map of blocks coloured by state.

Reads the operators' door only: WatchBlocks for the map (whole once, then what changed), the lists for the figures. In a
pipe, or with --once, it prints one picture and ends.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Annotated, Any

import typer

from cluster.cli.status import AddressOption, Admin
from cluster.sizes import format_bytes

# BlockState -> a letter for plain output and a style for terminals. States run from 1.
LETTERS = " .#SCmq"
STYLES = ("", "grey39", "green", "bold cyan", "blue", "yellow", "red")
NAMES = ("", "free", "held", "shared", "cached", "moving", "quarantined")
MAX_ROWS = 8


def register(app: typer.Typer) -> None:
    app.command()(top)


class BlockMaps:
    """The states of all blocks of all pools, kept up to date by WatchBlocks on a thread of its own."""

    def __init__(self, admin: Admin, interval_s: float) -> None:
        self.pools: dict[str, bytearray] = {}
        self._admin = admin
        self._interval_s = interval_s
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.has_come = threading.Event()
        self._thread.start()

    def _run(self) -> None:
        import grpc

        from protos.quire.v1 import admin_pb2 as pb

        try:
            self._call = self._admin.stub.WatchBlocks(pb.WatchBlocksRequest(interval_s=self._interval_s))
            for response in self._call:
                for part in response.pools:
                    if part.whole:
                        self.pools[part.pool] = bytearray(part.states)
                    else:
                        states = self.pools[part.pool]
                        for block, state in zip(part.blocks, part.states, strict=True):
                            states[block] = state
                for name in response.gone:
                    self.pools.pop(name, None)
                self.has_come.set()
        except grpc.RpcError:
            self.has_come.set()

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()


def top(
    address: AddressOption = None,
    interval: Annotated[float, typer.Option(help="Seconds between pictures.")] = 0.5,
    once: Annotated[bool, typer.Option("--once", help="One picture, then end.")] = False,
) -> None:
    """Watch requests, tokens per second, queues and the memory map live. Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    admin = Admin(address)
    console = Console()
    maps = BlockMaps(admin, max(0.1, interval))
    maps.has_come.wait(5.0)
    rates: deque[tuple[float, int]] = deque(maxlen=8)
    try:
        if once or not sys.stdout.isatty():
            console.print(_picture(admin, maps, rates, console.width, plain=not console.is_terminal))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_picture(admin, maps, rates, console.width, plain=False), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return
    finally:
        maps.close()


def _picture(admin: Admin, maps: BlockMaps, rates: deque[tuple[float, int]], width: int, plain: bool) -> Any:
    from rich.console import Group
    from rich.text import Text

    from protos.quire.v1 import admin_pb2 as pb

    cluster = admin.call("GetCluster", pb.GetClusterRequest())
    workers = admin.call("ListWorkers", pb.ListWorkersRequest())
    pools = {pool.name: pool for pool in admin.call("ListPools", pb.ListPoolsRequest()).pools}
    requests = admin.call("ListRequests", pb.ListRequestsRequest(limit=200))
    known = sum(request.output_tokens for request in requests.requests)
    finished = sum(tenant.output_tokens for tenant in admin.call("GetUsage", pb.GetUsageRequest()).tenants)
    rates.append((time.monotonic(), known + finished))
    counters = cluster.counters
    turn_us = counters["turn microseconds"] / max(1, counters["turns"])
    parts: list[Any] = [
        Text(
            f"Quire {cluster.version}  {cluster.num_workers} workers  {cluster.num_running} run  "
            f"{cluster.num_waiting} wait  {_rate(rates):,.0f} tokens/s  turn {turn_us:.0f} us  "
            f"dry leases {counters['dry leases']:,}",
            style="" if plain else "bold",
        ),
        Text(_preemptions(counters)),
        Text(_swaps(counters)),
    ]
    for name, states in maps.pools.items():
        pool = pools.get(name)
        if pool is not None:
            parts.append(Text(_pool_line(name, pool)))
            parts.append(_map(bytes(states), width, plain))
    if not plain:
        parts.append(Text.assemble(*[(f" {NAMES[state]} ", f"reverse {STYLES[state]}") for state in range(1, 7)]))
    else:
        parts.append(Text("  ".join(f"{LETTERS[state]} {NAMES[state]}" for state in range(1, 7))))
    for worker in workers.workers:
        state = "drains" if worker.draining else f"{worker.step_s * 1e3:.1f} ms a step"
        parts.append(Text(f"{worker.name}: {worker.num_sequences} sequences, {state}, {worker.steps:,} steps"))
    for request in sorted(requests.requests, key=lambda one: one.state)[:MAX_ROWS]:
        what = pb.RequestState.Name(request.state).removeprefix("REQUEST_STATE_").lower()
        line = (
            f"{request.request_id[-16:]:16}  {what:8} {request.output_tokens:6,} tokens  {request.num_blocks:4} blocks"
        )
        parts.append(Text(f"{line}  {request.reason}"[:width]))
    return Group(*parts)


def _pool_line(name: str, pool: Any) -> str:
    used = pool.num_blocks - pool.num_free - pool.num_cached
    kind = "host memory" if pool.kind == 2 else "device"
    return (
        f"\n{name} ({kind}): {used:,} of {pool.num_blocks:,} blocks in use, {pool.num_cached:,} cached, "
        f"{pool.num_free:,} free"
    )


def _preemptions(counters: Any) -> str:
    shown = [
        f"{name} {count:,}" for name, count in sorted(counters.items()) if name.startswith(("preempted", "transfer"))
    ]
    return "  ".join(shown) or "no preemptions"


def _swaps(counters: Any) -> str:
    """What went to host memory and came back, how fast, and how often there was no room for it."""
    parts = []
    for way in ("out", "in"):
        size, seconds = counters[f"swapped {way} bytes"], counters[f"swapped {way} microseconds"] / 1e6
        if seconds:
            parts.append(f"swapped {way} {format_bytes(size)} at {format_bytes(int(size / seconds))}/s")
    if counters["out of host memory"]:
        parts.append(f"OUT OF HOST MEMORY {counters['out of host memory']:,} times: give --host-memory more")
    return "  ".join(parts) or "nothing swapped"


def _rate(rates: deque[tuple[float, int]]) -> float:
    """Tokens a second over the last pictures."""
    (began, before), (ended, after) = rates[0], rates[-1]
    return max(0, after - before) / (ended - began) if ended > began else 0.0


def _map(states: bytes, width: int, plain: bool) -> Any:
    """A pool as at most eight lines. Each cell stands for a run of blocks and shows the busiest state among them."""
    from rich.text import Text

    cells = width * MAX_ROWS
    run = max(1, -(-len(states) // cells))
    # Quarantined, moving, shared and held show before cached and free.
    order = (0, 1, 4, 5, 3, 6, 7)
    shown = [max(states[at : at + run], key=lambda state: order[state]) for at in range(0, len(states), run)]
    text = Text()
    for row in range(0, len(shown), width):
        if row:
            text.append("\n")
        line = shown[row : row + width]
        at = 0
        while at < len(line):
            end = at
            while end < len(line) and line[end] == line[at]:
                end += 1
            text.append(LETTERS[line[at]] * (end - at) if plain else "■" * (end - at), STYLES[line[at]])
            at = end
    return text
